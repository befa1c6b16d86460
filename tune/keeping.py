"""Keeps a sweep's storage bounded: what nobody needs of trials that ended is removed."""

import math
from collections.abc import Iterable, Sequence

from distgan import storage
from tune.records import SweepSpec, TrialRecord, trial_folder

_ENDED = ("finished", "stopped", "diverged", "failed")
_LARGE = ("checkpoints", "generator")


def losers(spec: SweepSpec, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that ended and are none of the best `spec.keep` configurations'.

    Configurations are ranked by the mean of the first metric over their trials; one that is not
    finished, for instance because a repeat of it still runs, keeps what it has.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    ended = {
        name: group for name, group in groups.items() if all(r.status in _ENDED for r in group)
    }
    best = sorted(ended, key=lambda name: (_loss(spec, ended[name]), name))[: spec.keep]
    bad = [r for group in ended.values() for r in group if r.status in ("diverged", "failed")]
    return bad + [r for name in ended if name not in best for r in ended[name] if r not in bad]


def remove_large(folder: str, records: Iterable[TrialRecord]) -> None:
    """Checkpoints and exported generators; the rest of a trial is small, and stays."""
    for record in records:
        for name in _LARGE:
            storage.remove_tree(storage.join(trial_folder(folder, record.trial_id), name))


def _loss(spec: SweepSpec, records: Sequence[TrialRecord]) -> float:
    """Lower is better; infinite if a trial has no value."""
    metric = spec.metrics[0]
    sign = 1 if metric.mode == "min" else -1
    values = [sign * record.values.get(metric.name, math.nan) for record in records]
    mean = sum(values) / len(values)
    return math.inf if math.isnan(mean) else mean
