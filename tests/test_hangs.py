"""Who hangs, who is waited for, and what a look at a worker tells."""

import concurrent.futures
import contextlib
import faulthandler
import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from cluster import hangs, link
from cluster.attempt import Attempt, FaultError
from cluster.board import RankFacts, Snapshot
from cluster.process_group import stop_process_group
from cluster.ranks import run_on_ranks
from cluster.rendezvous import bound_groups
from distgan.config import Config
from distgan.config_loading import with_values
from tests.faulty_worker import FAULTS

NOW, LIMIT_S = 100.0, 10.0


def facts(*, silent_s: float = 0, still_s: float = 0, step: int = 3, **more: bool) -> RankFacts:
    return RankFacts(
        pid=1, node_id="n", host="h", stacks="s", step=step,
        advanced=NOW - still_s, heard=NOW - silent_s, **more,
    )  # fmt: skip


def snapshot(*ranks: RankFacts, outcome: dict[str, object] | None = None) -> Snapshot:
    return Snapshot(NOW, dict(enumerate(ranks)), [], outcome)


def test_ranks_that_have_ended_hang_no_more() -> None:
    seen = snapshot(facts(still_s=20, silent_s=20, ended=True), facts(still_s=20, step=5))
    assert hangs.hanging(seen, LIMIT_S) == [1]
    assert hangs.suspects(seen) == [1]
    assert hangs.hanging(snapshot(facts(still_s=20, ended=True)), LIMIT_S) == []


def test_of_ranks_that_wait_for_each_other_the_silent_and_the_last_are_named() -> None:
    still = facts(still_s=20)
    assert hangs.suspects(snapshot(still, facts(still_s=20, silent_s=20))) == [1]
    assert hangs.suspects(snapshot(still, facts(still_s=20, step=2))) == [1]
    assert hangs.hanging(snapshot(facts(still_s=9), facts()), LIMIT_S) == []


def test_an_attempt_is_over_with_its_outcome_or_its_last_rank() -> None:
    assert not hangs.over(snapshot(), 2)
    assert not hangs.over(snapshot(facts(ended=True)), 2), "the other has not begun"
    assert not hangs.over(snapshot(facts(ended=True), facts()), 2)
    assert hangs.over(snapshot(facts(ended=True), facts(ended=True)), 2)
    assert hangs.over(snapshot(facts(), facts(), outcome={"step": 3}), 2)


def test_ranks_that_have_not_begun_are_known() -> None:
    assert hangs.missing(snapshot(facts(ended=True)), 3) == [1, 2]


def test_an_attempt_ends_whose_ranks_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    monkeypatch.setattr(hangs, "describe", lambda snapshot: "")
    watched = object.__new__(Attempt)  # without its process of Ray's
    watched.config, watched.size = with_values(Config(), {"cluster.hang_seconds": LIMIT_S}), 2
    watched.last = snapshot(facts())
    watched.started = time.monotonic() - 14
    watched._check_progress()
    watched.started -= 2
    with pytest.raises(FaultError, match=r"^rank 1 did not start within 15 s"):
        watched._check_progress()
    watched.last = snapshot(facts(), facts())
    watched._check_progress()


def test_no_process_group_gives_up_before_the_watch_does() -> None:
    """DeepSpeed makes groups without a word on their timeout."""
    (timeouts_s,) = run_on_ranks(timeouts_of_groups, (2000,), world_size=1)
    assert timeouts_s == [2000.0, 2000.0]


def timeouts_of_groups(timeout_s: int) -> list[float]:
    stop_process_group()
    bound_groups(timeout_s)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    groups = [torch.distributed.group.WORLD, torch.distributed.new_group([0])]
    device = torch.device("cpu")
    return [g._get_backend(device).options._timeout.total_seconds() for g in groups]


def test_a_look_tells_stacks_and_survives_a_worker_that_has_left(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    with stacks.open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        assert "in test_a_look_tells_stacks" in hangs._look(os.getpid(), str(stacks))
        faulthandler.unregister(signal.SIGUSR1)
    stacks.unlink()
    told = hangs._look(os.getpid(), str(stacks))
    assert told.startswith("process state") and told.endswith("has left its training meanwhile")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert hangs._look(process.pid, str(stacks)) == "the process is gone"


ASLEEP, HELD, STOPPED, DEAF = "hang", "held interpreter", "SIGSTOP", "deaf"
"""Three of `FAULTS`, and a sleeper that hears of no signal."""


def stuck_worker(board: Connection, folder: str, fault: str) -> None:
    """In touch with a board at the other end of a pipe, without Ray, until the fault."""

    def call(name: str) -> Any:
        return SimpleNamespace(remote=lambda *values: board.send((name, *values)))

    def own_facts(stacks: str) -> RankFacts:
        return RankFacts(pid=os.getpid(), node_id=fault, host="here", stacks=stacks)

    tempfile.tempdir = folder
    answering: Any = SimpleNamespace(get=lambda told, timeout: told)
    link.ray, link.own_facts = answering, own_facts
    if fault == DEAF:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    with link.Link(SimpleNamespace(**{n: call(n) for n in ("join", "beat", "leave")}), rank=0):
        FAULTS.get(fault, FAULTS[ASLEEP])()


@dataclass(frozen=True)
class Stuck:
    facts: RankFacts
    """As it has told its board."""
    still_beats: bool


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stuck]]:
    """Workers by their fault."""
    context, folder = multiprocessing.get_context("fork"), str(tmp_path_factory.mktemp("stuck"))
    boards: dict[str, Connection] = {}
    with contextlib.ExitStack() as stack:
        for fault in (ASLEEP, HELD, STOPPED, DEAF):
            boards[fault], theirs = context.Pipe()
            process = context.Process(target=stuck_worker, args=(theirs, folder, fault))
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
        joined = {fault: board.recv() for fault, board in boards.items()}
        assert all(told[:2] == ("join", 0) for told in joined.values())
        time.sleep(1)
        for board in boards.values():
            while board.poll():  # from before the fault
                board.recv()
        time.sleep(2)  # of four beats
        yield {fault: Stuck(joined[fault][2], board.poll()) for fault, board in boards.items()}


def test_a_held_interpreter_falls_silent_and_a_sleeper_does_not(stuck: dict[str, Stuck]) -> None:
    """So of two that wait for each other, the silent one is named."""
    beats = {fault: worker.still_beats for fault, worker in stuck.items()}
    assert beats == {ASLEEP: True, DEAF: True, HELD: False, STOPPED: False}


ENOUGH_S = hangs._STACK_WAIT_S + 3
"""For looks, on a busy machine too."""


@pytest.mark.parametrize("fault", [ASLEEP, HELD])
def test_whoever_can_run_writes_its_stacks(fault: str, stuck: dict[str, Stuck]) -> None:
    """Of all threads, and also where Python code holds the interpreter."""
    started = time.monotonic()
    told = hangs._look(stuck[fault].facts.pid, stuck[fault].facts.stacks)
    assert time.monotonic() - started < ENOUGH_S
    assert told.startswith("process state S (sleeping)\n")
    assert "faulty_worker.py" in told and "in stuck_worker" in told and "in _beat" in told


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (STOPPED, "process state T (stopped by a signal)"),
        (DEAF, "process state S (sleeping), gave no stacks"),
    ],
)
def test_others_are_not_waited_for(fault: str, words: str, stuck: dict[str, Stuck]) -> None:
    started = time.monotonic()
    assert hangs._look(stuck[fault].facts.pid, stuck[fault].facts.stacks) == words
    assert time.monotonic() - started < ENOUGH_S


def test_all_are_looked_at_together_and_a_lost_machine_is_left(
    stuck: dict[str, Stuck], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The description of a hang comes within a bounded time, whatever becomes of a machine."""
    limit_s, back = hangs._STACK_WAIT_S + 2, threading.Event()

    def on_node(node: str, work: Callable[..., str]) -> Any:
        look = work if node in stuck else lambda *_: str(back.wait(60))
        return SimpleNamespace(remote=functools.partial(pool.submit, look))

    def wait(looks: list[Any], timeout: float, num_returns: int = 1) -> tuple[list[Any], list[Any]]:
        done, others = concurrent.futures.wait(looks, timeout)
        return list(done), list(others)

    tasks = SimpleNamespace(wait=wait, get=lambda look: look.result(), exceptions=ray.exceptions)
    monkeypatch.setattr(hangs, "ray", tasks)
    monkeypatch.setattr(hangs, "_on_node", on_node)
    monkeypatch.setattr(hangs, "_LOOK_TIMEOUT_S", limit_s)
    lost = RankFacts(pid=1, node_id="lost", host="lost", stacks="stacks")
    ranks = [stuck[fault].facts for fault in (ASLEEP, HELD, STOPPED, DEAF)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for seen, within_s in ((ranks, ENOUGH_S), ([*ranks, lost], limit_s + 3)):
            started = time.monotonic()
            told = hangs.describe(snapshot(*seen))
            assert time.monotonic() - started < within_s
            of_rank = re.split(r"^rank \d ", told, flags=re.MULTILINE)[1:]
            assert len(of_rank) == len(seen)
            assert ["in stuck_worker" in one for one in of_rank[:4]] == [True, True, False, False]
            assert "stopped by a signal" in of_rank[2] and "gave no stacks" in of_rank[3]
        back.set()
    assert of_rank[4].endswith("its machine does not answer")
