"""Where the step's time goes, and means of what it logs, kept on the device until they are read."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class PartTimer:
    """Seconds per named part since the last reading. On a GPU it uses events, so nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what runs inside."""
        if self.on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.events.append((name, begin, end))
        else:
            start = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - start)

    def read(self, steps: int) -> dict[str, float]:
        """`time/NAME_s` per step, and starts anew."""
        for name, begin, end in self.events:
            end.synchronize()
            self._add(name, begin.elapsed_time(end) / 1000)
        means = {f"time/{name}_s": total / steps for name, total in self.seconds.items()}
        self.seconds, self.events = {}, []
        return means

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class ComputeClock:
    """Seconds that a run's steps have computed, over all its starts.

    On CPUs the CPU time of this process, all its threads together, which other programs on the
    machine hardly change; on a GPU the time that the GPU took. What lies between the steps
    (evaluation, samples, waiting for data) does not count, but for the share of a checkpoint that a
    thread writes meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Counts what runs inside."""
        if self.on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            start = time.process_time()
            yield
            self._seconds += time.process_time() - start

    @property
    def seconds(self) -> float:
        """All so far; waits for a GPU."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events = []
        return self._seconds

    def set(self, seconds: float) -> None:
        """What earlier starts have computed."""
        self._seconds, self._events = seconds, []


class MetricMeans:
    """Means of step metrics over a logging interval; their sums are part of a checkpoint."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        for name, value in metrics.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means so far, and starts anew."""
        means = self.so_far()
        self.sums, self.counts = {}, {}
        return means

    def so_far(self) -> dict[str, float]:
        """The means, which go on."""
        return {name: total.item() / self.counts[name] for name, total in self.sums.items()}

    def state(self) -> dict[str, tuple[float, int]]:
        return {name: (total.item(), self.counts[name]) for name, total in self.sums.items()}

    def load_state(self, state: Mapping[str, tuple[float, int]], device: torch.device) -> None:
        self.sums = {
            name: torch.tensor(total, dtype=torch.float64, device=device)
            for name, (total, _) in state.items()
        }
        self.counts = {name: count for name, (_, count) in state.items()}
