"""Looks at workers that make no progress: who they are, what state they are in, where they wait."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.board import RankFacts, Snapshot, on_node

_STACK_WAIT_S = 2.0
_LOOK_TIMEOUT_S = 20.0
_STATES = {
    "R": "running", "S": "sleeping", "D": "waiting for a device", "T": "stopped by a signal",
    "t": "stopped by a debugger", "Z": "dead, not yet collected", "X": "dead",
}  # fmt: skip


def over(snapshot: Snapshot, size: int) -> bool:
    """Whether nothing more is to come from the workers."""
    ended = sum(facts.ended for facts in snapshot.ranks.values())
    return snapshot.outcome is not None or ended == size


def hanging(snapshot: Snapshot, limit_s: float) -> list[int]:
    """Ranks that should make progress and have made none for longer than the limit."""
    return sorted(r for r, f in _at_work(snapshot).items() if snapshot.now - f.advanced > limit_s)


def suspects(snapshot: Snapshot) -> list[int]:
    """Of ranks that wait for each other, those that the others wait for: silent ones, else the
    furthest behind."""
    ranks = _at_work(snapshot)
    silent = [rank for rank, f in ranks.items() if snapshot.now - f.heard > 5]
    least = min(facts.step for facts in ranks.values())
    return sorted(silent or [rank for rank, facts in ranks.items() if facts.step == least])


def missing(snapshot: Snapshot, size: int) -> list[int]:
    """Ranks that do not train yet."""
    return sorted(set(range(size)) - snapshot.ranks.keys())


def _at_work(snapshot: Snapshot) -> dict[int, RankFacts]:
    return {rank: facts for rank, facts in snapshot.ranks.items() if not facts.ended}


def describe(snapshot: Snapshot) -> str:
    """State and stacks of every rank, within a bounded time; ranks whose machine does not answer
    are said to."""
    ranks = snapshot.starting | snapshot.ranks
    looks = {rank: _look_from_its_node(facts) for rank, facts in ranks.items()}
    ray.wait(list(looks.values()), num_returns=len(looks), timeout=_LOOK_TIMEOUT_S)
    parts = []
    for rank, facts in sorted(ranks.items()):
        silent_s = snapshot.now - facts.heard
        step = f"step {facts.step}" if rank in snapshot.ranks else "starting"
        head = (
            f"rank {rank} (pid {facts.pid} on {facts.host}), {step}, no progress for "
            f"{snapshot.now - facts.advanced:.0f} s, last sign of life {silent_s:.0f} s ago"
        )
        parts.append(f"{head}: {_result(looks[rank])}")
    return "\n".join(parts)


def kill(processes: Sequence[tuple[str, int]]) -> None:
    """Ends processes, given as (node id, pid), within a bounded time; also stopped ones."""
    done = [_on_node(node, _kill).remote(pid) for node, pid in processes]
    ray.wait(done, num_returns=len(done), timeout=_LOOK_TIMEOUT_S)


def _look_from_its_node(facts: RankFacts) -> Any:
    return _on_node(facts.node_id, _look).remote(facts.pid, facts.stacks)


def _on_node(node: str, work: Any) -> Any:
    there = on_node(node)
    return ray.remote(num_cpus=0, max_retries=0)(work).options(scheduling_strategy=there)


def _result(reference: Any) -> str:
    done, _ = ray.wait([reference], timeout=0)
    if not done:
        return "its machine does not answer"
    try:
        return str(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        return f"it can't be looked at ({error.cause})"
    except ray.exceptions.RayError as error:
        return f"its machine does not answer ({type(error).__name__})"


def _look(pid: int, stacks: str) -> str:
    """Runs on the worker's machine."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return "the process is gone"
    letter = status.rpartition(")")[2].split()[0]
    state = f"process state {letter} ({_STATES.get(letter, 'unknown')})"
    if letter not in "RS" or not stacks:
        return state
    try:
        return state + _ask_for_stacks(pid, Path(stacks))
    except (FileNotFoundError, ProcessLookupError):
        return f"{state}, has left its training meanwhile"


def _ask_for_stacks(pid: int, file: Path) -> str:
    before = size = file.stat().st_size
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + _STACK_WAIT_S
    while time.monotonic() < deadline:
        time.sleep(0.2)
        grown = file.stat().st_size
        if grown == size and grown > before:
            break
        size = grown
    text = file.read_bytes()[before:].decode(errors="replace")
    return f"\n{text}" if text else ", gave no stacks"


def _kill(pid: int) -> None:
    """Runs on the process's machine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
