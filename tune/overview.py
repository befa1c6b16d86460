"""A sweep as it stands, read from its folder: its trials in order, and the winner as overrides."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import JsonValue

from distgan import storage
from distgan.config import Config
from distgan.config_loading import flatten, with_values
from distgan.errors import UserError
from distgan.run_folder import is_held, saved_config
from tune import tables
from tune.ranking import Candidate, best_trial, rank, winner
from tune.records import SweepSpec, TrialRecord, read_sweep

RETRAINED = "best"
"""Folder, in the sweep's, for the winner when it is trained anew."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep as its folder holds it, with its candidates in order."""

    folder: str
    spec: SweepSpec
    base: Config
    records: tuple[TrialRecord, ...]
    candidates: tuple[Candidate, ...]

    @property
    def winner(self) -> Candidate | None:
        return winner(self.candidates)

    @property
    def is_over(self) -> bool:
        """Every trial has ended."""
        total = (self.spec.num_trials + 1) * self.spec.repeats
        return len(self.records) >= total and all(r.status != "running" for r in self.records)


def load_sweep(folder: str) -> Sweep:
    """Reads a sweep's folder.

    Raises:
        UserError: it holds no sweep, or a file of it is damaged.
    """
    spec, records = read_sweep(folder)
    base = saved_config(folder)
    if base is None:
        raise UserError(f"{folder}: config.yaml, the base configuration, is missing; put it back")
    candidates = rank(spec, records, flatten(base))
    return Sweep(
        folder=folder, spec=spec, base=base, records=tuple(records), candidates=tuple(candidates)
    )


def status(folder: str) -> str:
    """A table of the trials so far, best first, for a terminal.

    Raises:
        UserError: there is no sweep in the folder, or a file of it is damaged.
    """
    sweep = load_sweep(folder)
    lines = [f"{folder}: {tables.counts(sweep.candidates)}; {_life(sweep)}"]
    if sweep.candidates:
        lines.append(tables.as_text(sweep.spec, sweep.candidates))
    return "\n".join(lines)


def _life(sweep: Sweep) -> str:
    """Whether the sweep is over, goes on, or was interrupted."""
    if sweep.is_over:
        return "the sweep is over"
    held = is_held(sweep.folder)
    if held is None:
        return "whether a process still works on it can't be told from its folder"
    if held:
        return "the sweep goes on"
    return "interrupted (nobody on this machine works on it); run the same command again to go on"


def best_overrides(sweep: Sweep, best: Candidate) -> dict[str, JsonValue]:
    """What turns the base configuration into the winner's best trial, its seed among it."""
    overrides = dict(best.overrides)
    trial = best_trial(sweep.spec, best)
    return overrides if trial.seed == sweep.base.seed else {**overrides, "seed": trial.seed}


def best_config(sweep: Sweep) -> Config:
    """The winner as a whole configuration, with a run folder of its own in the sweep's.

    Raises:
        UserError: no trial has a value.
    """
    best = sweep.winner
    if best is None:
        metric = sweep.spec.metrics[0].name
        if sweep.is_over:
            raise UserError(
                f"{sweep.folder}: the sweep is over, and no trial came to a value of {metric}; "
                "see its report.md for the reasons"
            )
        raise UserError(f"{sweep.folder}: no trial has a value of {metric} yet; wait for one")
    run_dir = storage.join(sweep.folder, RETRAINED)
    return with_values(sweep.base, {**best_overrides(sweep, best), "run.dir": run_dir})


def overrides_line(overrides: Mapping[str, JsonValue]) -> str:
    """`key=value ...` for a shell; the configuration reads the same values from it."""
    return " ".join(shlex.quote(f"{key}={_as_text(value)}") for key, value in overrides.items())


def _as_text(value: Any) -> str:
    text = str(value)
    if isinstance(value, str):
        # Quotes only where YAML would see a number, a list, a yes ...
        return text if yaml.safe_load(text) == value else yaml.safe_dump(value).strip()
    flow = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return flow.removesuffix("...\n").strip().replace(", ", ",")
