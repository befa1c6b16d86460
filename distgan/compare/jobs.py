"""The pieces of work of a comparison: each in a process of its own, whose results are files."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from distgan import storage
from distgan.compare.costs import step_memory_gib, sweep_tokens
from distgan.compare.measures import divergence, is_measured, measure_run
from distgan.compare.real_clips import keep_real_clips
from distgan.config import Config
from distgan.errors import DivergedError
from distgan.local import train_locally


class Job(Protocol):
    """Can be pickled, and does nothing twice: a job that is done already returns at once."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def is_done(self) -> bool: ...

    def perform(self, *, show_progress: bool) -> int | None:
        """Does it; returns the signal's number if one ended it early."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunJob:
    """Trains one run, or goes on with it, and measures what came out."""

    name: str
    config: Config
    demo_data: bool

    def is_done(self) -> bool:
        return is_measured(self.config.run.dir)

    def perform(self, *, show_progress: bool) -> int | None:
        """A run that diverges is done: that is its result."""
        storage.configure(self.config.storage)
        if divergence(self.config.run.dir) is None:
            try:
                outcome = train_locally(self.config, show_progress=show_progress)
            except DivergedError:
                if divergence(self.config.run.dir) is None:
                    raise
            else:
                if outcome.signal:
                    return outcome.signal
        measure_run(self.config, demo_data=self.demo_data)
        return None


@dataclass(frozen=True, kw_only=True)
class FileJob(ABC):
    """Its result is one file."""

    name: str
    config: Config
    result: str

    def is_done(self) -> bool:
        return storage.exists(self.result)

    def perform(self, *, show_progress: bool) -> int | None:
        storage.configure(self.config.storage)
        self.write()
        return None

    @abstractmethod
    def write(self) -> None: ...


class ClipsJob(FileJob):
    """Real clips for the report, which is to stand without the data set: an NPY file."""

    def write(self) -> None:
        keep_real_clips(self.config, self.result)


class MemoryJob(FileJob):
    """The memory of a kind's training step: a JSON file."""

    def write(self) -> None:
        _write(self.result, {"step_memory_gib": step_memory_gib(self.config)})


class SweepJob(FileJob):
    """Time and memory of a kind's layers over the number of tokens: a JSON file."""

    def write(self) -> None:
        _write(self.result, sweep_tokens(self.config))


def _write(path: str, facts: Any) -> None:
    storage.write_bytes(path, json.dumps(facts, indent=1).encode())
