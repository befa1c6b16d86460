"""Keeps a sweep's storage bounded: what nobody needs of it any more is removed."""

import math
from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from distgan import storage
from tune.population import POPULATION
from tune.ranking import pareto_front, rank
from tune.records import CONFIG, SWEEP, TRIALS, TUNE, SweepSpec, TrialRecord, trial_folder

_LARGE = ("checkpoints", "generator")


def losers(
    spec: SweepSpec, records: Sequence[TrialRecord], base: Mapping[str, JsonValue]
) -> list[TrialRecord]:
    """Trials that ended and are none of the best `spec.keep` configurations'.

    The best of several metrics are kept beside these: those that no other one beats in all. A
    configuration of which a repeat still runs keeps what it has.

    Args:
        base: dotted key -> value of the base configuration.
    """
    candidates = rank(spec, records, base)
    ended = [c for c in candidates if all(trial.status != "running" for trial in c.trials)]
    sound = [c for c in ended if c.state in ("finished", "unfinished")]
    kept = {candidate.group for candidate in sound[: spec.keep]}
    if len(spec.metrics) > 1:
        kept |= {candidate.group for candidate in pareto_front(spec, candidates)}
    return [trial for c in ended if c.group not in kept for trial in c.trials]


def remove_large(folder: str, records: Iterable[TrialRecord]) -> None:
    """Checkpoints and exported generators; the rest of a trial is small, and stays."""
    for record in records:
        for name in _LARGE:
            storage.remove_tree(storage.join(trial_folder(folder, record.trial_id), name))


def take_back(folder: str, spec: SweepSpec, records: Sequence[TrialRecord]) -> bool:
    """Removes a sweep in which nothing was measured, so that its folder is free for another one.

    Returns:
        Whether it was: not if a trial has finished, was stopped, or has a value of each metric.
    """
    names = [metric.name for metric in spec.metrics]
    for record in records:
        measured = all(math.isfinite(record.values.get(name, math.nan)) for name in names)
        if measured or record.status in ("finished", "stopped"):
            return False
    # The sweep's own file goes first: without it, no start takes the rest for a sweep.
    for name in (SWEEP, CONFIG, POPULATION):
        path = storage.join(folder, name)
        if storage.exists(path):
            storage.remove(path)
    for name in (TRIALS, TUNE):
        storage.remove_tree(storage.join(folder, name))
    return True
