"""Side by side: every round runs each candidate once, in turn, first to last and back."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """Of one unit of work, such as a gigabyte."""

    wall_s: float
    cpu_s: float
    """Of this process and its children."""


class Clock:
    """Runs from its making on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_s()

    def cost(self, units: float) -> Cost:
        """Since then, a unit; children that have ended in between must have been waited for."""
        wall, cpu = time.perf_counter() - self._wall, _cpu_s() - self._cpu
        return Cost(wall / units, cpu / units)


Costs = dict[str, list[Cost]]


def measured(candidates: Mapping[str, Callable[[], Cost]], rounds: int) -> Costs:
    """Costs by candidate, one a round; the first round warms up and is not among them."""
    costs: Costs = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name in candidates if number % 2 == 0 else reversed(list(candidates)):
            cost = candidates[name]()
            if number:
                costs[name].append(cost)
    return costs


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def speed_ratio(costs: Costs, ours: str, other: str, what: str = "wall_s") -> str:
    """How fast one is relative to the other, round by round: over 1 is faster."""
    pairs = zip(costs[ours], costs[other], strict=True)
    return spread([getattr(b, what) / getattr(a, what) for a, b in pairs])


def rates(costs: Costs, name: str) -> str:
    """Units a second of wall time, and a second of CPU time."""
    return (
        f"{statistics.median(1 / c.wall_s for c in costs[name]):.2f} | "
        f"{statistics.median(1 / c.cpu_s for c in costs[name]):.2f}"
    )


def _cpu_s() -> float:
    times = os.times()
    ticks = os.sysconf("SC_CLK_TCK")
    living = 0.0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        living += (int(fields[11]) + int(fields[12])) / ticks
    return time.process_time() + times.children_user + times.children_system + living
