"""What the workers of an attempt and the process that started them tell each other.

An actor beside the starting process: it ends with that process, and a worker that no longer finds
it knows that it is an orphan. Only plain numbers and texts pass through.
"""

import os
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_S = 60.0
"""A board that gives no answer for longer is lost."""


@dataclass
class RankFacts:
    """What one rank last said."""

    pid: int
    node_id: str
    host: str
    stacks: str = ""
    """File on its host that collects its stacks when it gets SIGUSR1; empty before it can."""
    step: int = -1
    advanced: float = field(default_factory=time.monotonic)
    """When `step` last changed, by the board's clock."""
    heard: float = field(default_factory=time.monotonic)
    logged: dict[str, float] = field(default_factory=dict)
    """The numbers that it logged last."""
    ended: bool = False
    """Whether it has left its training, in whatever way."""


@dataclass
class Failure:
    """An error of ours that ended a rank."""

    rank: int
    kind: str
    """Name of its class in `distgan.errors`."""
    message: str


@dataclass
class Evaluation:
    """What rank 0 logged at a step, where the starting process listens."""

    step: int
    seconds: float
    """Training time over all starts of the run."""
    logged: dict[str, float]


@dataclass
class Snapshot:
    """All that the board knows."""

    now: float
    ranks: dict[int, RankFacts]
    failures: list[Failure]
    outcome: dict[str, Any] | None
    evaluation: Evaluation | None = None
    """One that rank 0 waits with."""
    pid: int = 0
    """The board's own; 0 before it has answered."""
    controller_pid: int | None = None
    """Ray Train's controller, on the board's machine."""
    starting: dict[int, RankFacts] = field(default_factory=dict)
    """Of ranks that have a process and do not train yet."""


class Board:
    """See the module's text; made an actor by `make_board`."""

    def __init__(self) -> None:
        self.stop_signal: int | None = None
        self.ranks: dict[int, RankFacts] = {}
        self.failures: list[Failure] = []
        self.outcome: dict[str, Any] | None = None
        self.evaluation: Evaluation | None = None
        self.controller_pid: int | None = None
        self.starting: dict[int, RankFacts] = {}

    def note_controller(self, pid: int) -> None:
        self.controller_pid = pid

    def announce(self, rank: int, facts: RankFacts) -> None:
        facts.advanced = facts.heard = time.monotonic()
        self.starting[rank] = facts

    def join(self, rank: int, facts: RankFacts) -> None:
        facts.advanced = facts.heard = time.monotonic()
        self.ranks[rank] = facts
        self.starting.pop(rank, None)

    def beat(self, rank: int, step: int, logged: dict[str, float]) -> int | None:
        """Notes a sign of life; returns the signal that asks to stop."""
        facts = self.ranks[rank]
        facts.heard, facts.logged = time.monotonic(), logged
        if step != facts.step:
            facts.step, facts.advanced = step, facts.heard
        return self.stop_signal

    def leave(self, rank: int) -> None:
        self.ranks[rank].ended = True

    def fail(self, failure: Failure) -> None:
        self.failures.append(failure)

    def end(self, outcome: dict[str, Any]) -> None:
        self.outcome = outcome

    def request_stop(self, number: int) -> None:
        self.stop_signal = number

    def evaluate(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    def go_on(self) -> None:
        """The evaluation has been listened to."""
        self.evaluation = None

    def waits(self) -> tuple[bool, int | None]:
        """Whether rank 0 still has to wait with its evaluation; and the signal to stop."""
        return self.evaluation is not None, self.stop_signal

    def read(self) -> Snapshot:
        now = time.monotonic()
        return Snapshot(
            now=now,
            ranks=self.ranks,
            failures=self.failures,
            outcome=self.outcome,
            evaluation=self.evaluation,
            pid=os.getpid(),
            controller_pid=self.controller_pid,
            starting=self.starting,
        )


def make_board() -> Any:
    """The actor's handle, on this process's node."""
    here = on_node(ray.get_runtime_context().get_node_id())
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()


def own_facts(stacks: str = "") -> RankFacts:
    """Of the worker in which this is called."""
    return RankFacts(
        pid=os.getpid(),
        node_id=ray.get_runtime_context().get_node_id(),
        host=socket.gethostname(),
        stacks=stacks,
    )


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Runs a task or an actor on one machine, or not at all."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)
