"""From the runs' courses to what they support: readings, spreads, and which kind is better.

All quality here is a distance: lower is better. Runs of different kinds with the same seed saw the
same data in the same order, so kinds are compared seed by seed.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


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
        """Quality at the last step. A run that diverged is as good as one that never trained."""
        return self.untrained if self.diverged_at is not None else self.quality[-1]

    def at_time(self, seconds: float) -> float:
        """Quality after so much computing, on straight lines between the evaluations."""
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


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two kinds, seed by seed."""

    first: str
    second: str
    ratio: float
    """Geometric mean over the seeds of first's distance divided by second's."""
    low: float
    high: float
    """Confidence interval of the ratio; 0 and infinity where nothing can be said."""

    @property
    def better(self) -> str | None:
        """The kind that is better, if the interval excludes a ratio of 1."""
        if self.high < 1:
            return self.first
        return self.second if self.low > 1 else None


def compare_pairs(values: Mapping[str, Sequence[float]]) -> list[Pair]:
    """Every pair of kinds.

    The interval is Student's t on the seeds' log ratios. Its level is CONFIDENCE for all pairs
    together (Bonferroni): many pairs must not find a winner by chance.

    Args:
        values: positive distances of each kind, in the order of the seeds, which are the same for
            all kinds.
    """
    pairs = list(itertools.combinations(values, 2))
    level = 1 - (1 - CONFIDENCE) / max(len(pairs), 1)
    return [_pair(first, second, values, level) for first, second in pairs]


def _pair(first: str, second: str, values: Mapping[str, Sequence[float]], level: float) -> Pair:
    logs: NDArray[np.float64] = np.log(np.maximum(values[first], 1e-12)) - np.log(
        np.maximum(values[second], 1e-12)
    )
    mean, count = float(logs.mean()), len(logs)
    if count < 2:
        half = math.inf
    else:
        error = float(logs.std(ddof=1)) / math.sqrt(count)
        half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return Pair(
        first=first,
        second=second,
        ratio=math.exp(mean),
        low=math.exp(mean - half) if math.isfinite(half) else 0.0,
        high=math.exp(min(mean + half, 700.0)) if math.isfinite(half) else math.inf,
    )


def smallest_visible_ratio(pairs: Sequence[Pair]) -> float:
    """The ratio that the median pair's interval would just have told from 1; infinite if none."""
    halves = [math.sqrt(p.high / p.low) if p.low > 0 else math.inf for p in pairs]
    return float(np.median(halves)) if halves else math.inf
