"""The pieces of work of a comparison: each in a process of its own, whose results are files."""

import json
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
class ClipsJob:
    """Real clips for the report, which is to stand without the data set."""

    name: str
    config: Config
    result: str
    """NPY file."""

    def is_done(self) -> bool:
        return storage.exists(self.result)

    def perform(self, *, show_progress: bool) -> int | None:
        storage.configure(self.config.storage)
        keep_real_clips(self.config, self.result)
        return None


@dataclass(frozen=True, kw_only=True)
class MemoryJob:
    """The memory of a kind's training step."""

    name: str
    config: Config
    result: str
    """JSON file."""

    def is_done(self) -> bool:
        return storage.exists(self.result)

    def perform(self, *, show_progress: bool) -> int | None:
        storage.configure(self.config.storage)
        _write(self.result, {"step_memory_gib": step_memory_gib(self.config)})
        return None


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """Time and memory of a kind's layers over the number of tokens."""

    name: str
    config: Config
    result: str

    def is_done(self) -> bool:
        return storage.exists(self.result)

    def perform(self, *, show_progress: bool) -> int | None:
        storage.configure(self.config.storage)
        _write(self.result, sweep_tokens(self.config))
        return None


def _write(path: str, facts: Any) -> None:
    storage.write_bytes(path, json.dumps(facts, indent=1).encode())
