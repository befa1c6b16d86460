"""From the runs' courses to what they support: readings, spreads, and which kind is better.

All quality here is a distance: lower is better. Runs of different kinds with the same seed saw the
same data in the same order, so kinds are compared seed by seed.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
NUM_READINGS = 2
"""Each pair of kinds is judged after equal steps and after equal computing time."""

_ROUNDING = 1e-9
"""Log ratios of single seeds that lie nearer together than this differ by nothing but rounding."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """A run's quality over its training."""

    kind: str
    seed: int
    steps: tuple[int, ...]
    compute_s: tuple[float, ...]
    quality: tuple[float, ...]
    untrained: float
    diverged_at: int | None = None
    """Step; None if it trained to the end."""

    @property
    def total_s(self) -> float:
        """Computing time of the whole run."""
        return self.compute_s[-1] if self.compute_s else 0.0

    def at_end(self) -> float:
        """Quality at the last step; of a run that diverged, as if it had never trained."""
        return self.untrained if self.diverged_at is not None else self.quality[-1]

    def at_time(self, seconds: float) -> float:
        """Quality after so much computing, on straight lines between the evaluations; of a run that
        diverged, as if it had never trained."""
        if self.diverged_at is not None:
            return self.untrained
        times, values = (0.0, *self.compute_s), (self.untrained, *self.quality)
        return float(np.interp(seconds, times, values))


def common_time(courses: Sequence[Course]) -> float:
    """The longest computing time that all runs reached, but for those that diverged."""
    return min((c.total_s for c in courses if c.diverged_at is None), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over the seeds of a kind."""

    mean: float
    deviation: float
    """Standard deviation over the seeds; 0 with one seed."""
    values: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Spread(mean=float(np.mean(values)), deviation=deviation, values=tuple(values))


def of_whole_runs(courses: Sequence[Course], values: Sequence[float]) -> list[float | None]:
    """The values of runs that trained to the end; None for those that diverged."""
    return [
        value if course.diverged_at is None else None
        for course, value in zip(courses, values, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two kinds, seed by seed."""

    first: str
    second: str
    num_seeds: int
    """At which both trained to the end: these alone are compared."""
    ratio: float | None
    """Geometric mean over these seeds of first's distance divided by second's; None without any."""
    low: float
    high: float
    """Confidence interval of the ratio; 0 and infinity where nothing can be said."""
    unsteady: tuple[str, ...]
    """Of the two, what diverged at a seed where the other trained to the end."""

    @property
    def better(self) -> str | None:
        """The kind that is better: the interval excludes a ratio of 1, and it is not unsteady."""
        if self.low <= 1 <= self.high:
            return None
        closer = self.first if self.high < 1 else self.second
        return None if closer in self.unsteady else closer


def compare_pairs(values: Mapping[str, Sequence[float | None]]) -> list[Pair]:
    """Every pair of kinds, at one of the readings.

    The interval is Student's t on the log ratios of the seeds at which both kinds trained to the
    end: what a run that diverged would have reached is unknown, and any number in its place would
    only look like a measurement. Lest a kind win by its lucky seeds, none is called better that
    diverged where the other did not. The interval's level is CONFIDENCE for all pairs at all
    readings together (Bonferroni): many looks must not find a winner by chance.

    Args:
        values: positive distances of each kind, in the order of the seeds, which are the same for
            all kinds; None for a run that diverged.
    """
    pairs = list(itertools.combinations(values, 2))
    level = 1 - (1 - CONFIDENCE) / (NUM_READINGS * max(len(pairs), 1))
    return [_pair(first, second, values, level) for first, second in pairs]


def _pair(
    first: str, second: str, values: Mapping[str, Sequence[float | None]], level: float
) -> Pair:
    seeds = list(zip(values[first], values[second], strict=True))
    both = [(one, other) for one, other in seeds if one is not None and other is not None]
    unsteady = {first: any(one is None and other is not None for one, other in seeds),
                second: any(other is None and one is not None for one, other in seeds)}  # fmt: skip
    logs = [math.log(max(one, 1e-12)) - math.log(max(other, 1e-12)) for one, other in both]
    mean, half = float(np.mean(logs)) if logs else 0.0, _half_width(logs, level)
    return Pair(
        first=first,
        second=second,
        num_seeds=len(logs),
        ratio=math.exp(mean) if logs else None,
        low=math.exp(mean - half) if math.isfinite(half) else 0.0,
        high=math.exp(min(mean + half, 700.0)) if math.isfinite(half) else math.inf,
        unsteady=tuple(name for name, is_so in unsteady.items() if is_so),
    )


def _half_width(logs: Sequence[float], level: float) -> float:
    """Of Student's t interval; infinite where the seeds tell nothing of how much luck there is."""
    if len(logs) < 2:
        return math.inf
    deviation = float(np.std(logs, ddof=1))
    if deviation <= _ROUNDING:  # no two trainings come that near each other but by an error
        return math.inf
    return float(stats.t.ppf((1 + level) / 2, len(logs) - 1)) * deviation / math.sqrt(len(logs))


def smallest_visible_ratio(pairs: Sequence[Pair]) -> float:
    """The ratio that the median pair's interval would just have told from 1; infinite if none."""
    halves = [math.sqrt(p.high / p.low) if p.low > 0 else math.inf for p in pairs]
    return float(np.median(halves)) if halves else math.inf
