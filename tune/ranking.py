"""The order of a sweep's configurations, and how sure it is.

Trials that differ only in their seed are one candidate. Its value is the mean over its seeds, so
that no lucky seed wins; one seed that diverged makes it bad, as the next one may, too.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import JsonValue

from tune.records import BASE, MetricSpec, SweepSpec, TrialRecord

_REDRAWS = 20_000
_RIVAL_CHANCE = 0.1

State = Literal["finished", "unfinished", "diverged", "unranked"]
_ORDER: tuple[State, ...] = ("finished", "unfinished", "diverged", "unranked")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration with its trials, one a seed."""

    group: str
    overrides: Mapping[str, JsonValue]
    settings: Mapping[str, JsonValue]
    """The value of every key of the space, overridden or not; all candidates have the same keys."""
    trials: tuple[TrialRecord, ...]
    state: State
    """finished: every seed came to its end (but for faults). unfinished: some were stopped by the
    algorithm, or still run. diverged: some did. unranked: no value (pruned, failed, not begun)."""
    means: Mapping[str, float]
    """Each metric's mean over the trials that have it."""
    values: tuple[float, ...]
    """The first metric of each trial that has it."""

    @property
    def spread(self) -> float | None:
        """Standard deviation of the first metric over seeds; None with fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def step(self) -> int:
        """As far as each of its seeds came."""
        return min(trial.step for trial in self.trials)


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """What repeats over seeds say of the order; see `judge`."""

    spread: float
    """Standard deviation over seeds, pooled over the better half of the candidates."""
    first_again: float
    """How often the winner stays first when every mean is redrawn within its doubt, 0 to 1."""
    rivals: tuple[str, ...]
    """Groups that are better than the winner in more than 1 in 10 redraws."""
    by_chance: float | None
    """How often the best of so many configurations would beat the base configuration by as much if
    all were alike, 0 to 1; None if the base configuration has not finished, or wins."""


def rank(
    spec: SweepSpec, records: Sequence[TrialRecord], base: Mapping[str, JsonValue]
) -> list[Candidate]:
    """All candidates, best first.

    Args:
        base: dotted key -> value of the base configuration.

    Finished ones come first, by the first metric; then those that were stopped or still run, those
    that came further first; then diverged ones, and last those without a value.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    keys = dict.fromkeys([*spec.space, *(key for record in records for key in record.overrides)])
    shared = {key: base.get(key) for key in keys}
    candidates = [_candidate(spec, group, trials, shared) for group, trials in groups.items()]
    metric = spec.metrics[0]

    def key(candidate: Candidate) -> tuple[int, int, float, str]:
        further = -candidate.step if candidate.state == "unfinished" else 0
        place = _ORDER.index(candidate.state)
        return place, further, score(metric, candidate.means), candidate.group

    return sorted(candidates, key=key)


def score(metric: MetricSpec, values: Mapping[str, float]) -> float:
    """Lower is better, infinite if there is no finite value."""
    value = values.get(metric.name, math.nan)
    if not math.isfinite(value):
        return math.inf
    return value if metric.mode == "min" else -value


def winner(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first candidate with a value; None if there is none yet."""
    if candidates and candidates[0].state in ("finished", "unfinished"):
        return candidates[0]
    return None


def best_trial(spec: SweepSpec, candidate: Candidate) -> TrialRecord:
    """The candidate's seed that came out best: the one whose generator is worth having."""
    metric = spec.metrics[0]
    return min(candidate.trials, key=lambda trial: (score(metric, trial.values), trial.seed))


def base_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """The base configuration's own trials, if the sweep has any."""
    return next((candidate for candidate in candidates if candidate.group == BASE), None)


def pareto_front(spec: SweepSpec, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Finished candidates that no other one beats in one metric without being worse in another."""
    points = {
        candidate.group: tuple(score(metric, candidate.means) for metric in spec.metrics)
        for candidate in candidates
        if candidate.state == "finished"
    }

    def beaten(point: tuple[float, ...]) -> bool:
        return any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True))
            for other in points.values()
        )

    return [c for c in candidates if c.group in points and not beaten(points[c.group])]


def judge(spec: SweepSpec, candidates: Sequence[Candidate]) -> Certainty | None:
    """How sure the first place is; None where no configuration was repeated, as luck can't be told.

    Each finished candidate's mean is redrawn from Student's t distribution about it, with the
    spread over seeds that the better half of the candidates shares (worse ones scatter more).
    """
    from distgan.seeding import numpy_generator  # brings torch, which --status can do without

    finished = [candidate for candidate in candidates if candidate.state == "finished"]
    half = finished[: max(2, math.ceil(len(finished) / 2))]
    repeated = [candidate for candidate in half if len(candidate.values) > 1]
    if len(finished) < 2 or not repeated:
        return None
    freedom = sum(len(candidate.values) - 1 for candidate in repeated)
    squares = sum((candidate.spread or 0.0) ** 2 * (len(candidate.values) - 1)
                  for candidate in repeated)  # fmt: skip
    spread = math.sqrt(squares / freedom)

    means = np.array([score(spec.metrics[0], candidate.means) for candidate in finished])
    doubts = np.array([spread / math.sqrt(len(candidate.values)) for candidate in finished])
    generator = numpy_generator(spec.seed, "tune/ranking")
    draws = means + doubts * generator.standard_t(freedom, size=(_REDRAWS, len(finished)))
    beaten_by = (draws < draws[:, :1]).mean(axis=0)
    return Certainty(
        spread=spread,
        first_again=float((draws.argmin(axis=1) == 0).mean()),
        rivals=tuple(
            candidate.group
            for candidate, chance in zip(finished, beaten_by, strict=True)
            if chance > _RIVAL_CHANCE
        ),
        by_chance=_by_chance(spec, candidates, spread, freedom, generator),
    )


def _by_chance(
    spec: SweepSpec,
    candidates: Sequence[Candidate],
    spread: float,
    freedom: int,
    generator: np.random.Generator,
) -> float | None:
    """See `Certainty.by_chance`: the tail of Dunnett's many-to-one statistic, by drawing.

    Every configuration that was tried took part in the choice, also those that were stopped.
    """
    base, best = base_of(candidates), candidates[0]
    if base is None or base is best or base.state != "finished":
        return None
    metric = spec.metrics[0]
    lead = score(metric, base.means) - score(metric, best.means)
    if not spread:
        return float(lead <= 0)
    others = [len(c.values) for c in candidates if c is not base and c.values]
    shape = (_REDRAWS, len(others))
    means = generator.standard_normal(shape) / np.sqrt(others)
    its = generator.standard_normal((_REDRAWS, 1)) / math.sqrt(len(base.values))
    scale = np.sqrt(generator.chisquare(freedom, _REDRAWS) / freedom)
    return float(((its - means).max(axis=1) / scale >= lead / spread).mean())


def _candidate(
    spec: SweepSpec, group: str, trials: Sequence[TrialRecord], base: Mapping[str, JsonValue]
) -> Candidate:
    ordered = tuple(sorted(trials, key=lambda trial: trial.seed))
    # A fault says nothing of the configuration: such a trial counts neither way.
    telling = [trial for trial in ordered if trial.status not in ("failed", "pruned")]
    means = {
        metric.name: statistics.fmean(values)
        for metric in spec.metrics
        if (values := [t.values[metric.name] for t in telling if metric.name in t.values])
    }
    first = spec.metrics[0].name
    return Candidate(
        group=group,
        overrides=ordered[0].overrides,
        settings={**base, **ordered[0].overrides},
        trials=ordered,
        state=_state(spec, telling, means),
        means=means,
        values=tuple(trial.values[first] for trial in telling if first in trial.values),
    )


def _state(spec: SweepSpec, telling: Sequence[TrialRecord], means: Mapping[str, float]) -> State:
    first = spec.metrics[0]
    bad = any(t.status == "diverged" for t in telling) or not math.isfinite(
        means.get(first.name, 0)
    )
    if bad:
        return "diverged"
    if first.name not in means:
        return "unranked"
    return "finished" if all(t.status == "finished" for t in telling) else "unfinished"
