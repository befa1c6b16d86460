"""Which hyperparameters mattered, and what luck alone would have shown.

A dozen trials can't feed a regression forest, so each hyperparameter is judged alone: its values
fall into levels (a category each, or thirds of a numeric range by rank), and its importance is the
share of the variance of the trials' *ranks* that lies between the levels, corrected for the
number of levels (epsilon squared: Kelley 1935; on ranks the effect size of Kruskal and Wallis's
test, doi:10.1080/01621459.1952.10483441). Ranks bear diverged trials as the worst, and no outlier
rules. Interactions between hyperparameters are not seen.

Two measures of doubt come with it: a bootstrap interval over trials, and the chance level: what the
luckiest hyperparameter reaches when the ranks are dealt out at random (a permutation test of the
maximum, Westfall and Young 1993, so many hyperparameters don't make one of them "important").
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from distgan.seeding import numpy_generator

LEAST_TRIALS = 6
_LEVELS = 3  # of a numeric hyperparameter: the fewest that show an optimum inside the range
_RESAMPLES = 1000
_INTERVAL = (0.05, 0.95)
_CHANCE_QUANTILE = 0.95

Ranks = NDArray[np.float64]
Levels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Level:
    """Trials with alike values of a hyperparameter."""

    name: str
    trials: int
    mean_rank: float
    """Of all trials' ranks; 1 is best."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What one hyperparameter explains of the trials' order, 0 (nothing) to 1 (all of it)."""

    key: str
    share: float
    low: float
    high: float
    """The 90 % bootstrap interval of `share`."""
    chance: float
    """In 95 % of random orders no hyperparameter of this sweep reaches this share."""
    levels: tuple[Level, ...]
    """Best one first."""

    @property
    def stands_out(self) -> bool:
        return self.share > self.chance


def importances(columns: Mapping[str, Sequence[Any]], scores: Sequence[float]) -> list[Importance]:
    """The importance of each hyperparameter, largest first; those with one value are left out.

    Trials with equal values everywhere and equal scores are one training, and count once.

    Args:
        columns: hyperparameter -> its value in each trial (one place for trials that differ only in
            their seed).
        scores: of each trial, lower is better; infinite for one that diverged.

    Returns:
        Nothing with fewer than `LEAST_TRIALS` trials, or if all scores are the same.
    """
    once = _first_of_each(columns, scores)
    columns = {key: [values[place] for place in once] for key, values in columns.items()}
    ranks = rankdata([scores[place] for place in once]) if once else np.zeros(0)
    if len(ranks) < LEAST_TRIALS or np.ptp(ranks) == 0:
        return []
    named = {key: _levels(values) for key, values in columns.items()}
    levels = {key: numbers for key, (numbers, names) in named.items() if len(names) > 1}
    if not levels:
        return []
    chance = _chance_level(levels, ranks)
    found = []
    for key, numbers in levels.items():
        low, high = _interval(key, numbers, ranks)
        found.append(
            Importance(
                key=key,
                share=float(explained_share(numbers, ranks)),
                low=low,
                high=high,
                chance=chance,
                levels=_describe(numbers, named[key][1], ranks),
            )
        )
    return sorted(found, key=lambda importance: -importance.share)


def _first_of_each(columns: Mapping[str, Sequence[Any]], scores: Sequence[float]) -> list[int]:
    """Places of the trials, without those that repeat another one."""
    seen: dict[str, int] = {}
    for place, score in enumerate(scores):
        # Of those that diverged nothing tells whether they were the same.
        other = str(score) if math.isfinite(score) else f"{score} {place}"
        seen.setdefault(str([other, *(values[place] for values in columns.values())]), place)
    return list(seen.values())


def explained_share(levels: Levels, ranks: Ranks) -> Ranks:
    """Epsilon squared: the variance of ranks between levels, less what chance adds; 0 to 1.

    Args:
        levels, ranks: (..., trials); their leading axes are broadcast.

    Returns:
        One share for each of the leading axes.
    """
    one_hot = np.eye(int(levels.max()) + 1)[levels]  # (..., trials, levels)
    counts = one_hot.sum(-2)
    deviations = ranks - ranks.mean(-1, keepdims=True)
    sums = (deviations[..., None, :] @ one_hot)[..., 0, :]
    between = (sums**2 / np.maximum(counts, 1)).sum(-1)
    total = (deviations**2).sum(-1)
    trials, freedom = ranks.shape[-1], ranks.shape[-1] - (counts > 0).sum(-1)
    known = (total > 0) & (freedom > 0)
    unexplained = 1 - between / np.where(total > 0, total, 1)
    share = 1 - unexplained * (trials - 1) / np.maximum(freedom, 1)
    return np.where(known, np.maximum(share, 0.0), 0.0)


def _levels(values: Sequence[Any]) -> tuple[Levels, list[str]]:
    """The level of each value, and the levels' names."""
    distinct = {str(value): value for value in values}
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numeric or len(distinct) <= _LEVELS:
        order = sorted(distinct, key=distinct.__getitem__) if numeric else sorted(distinct)
        return np.array([order.index(str(value)) for value in values]), order
    # Equal values share a rank, so they share a level.
    places = (rankdata(values) - 0.5) / len(values)
    numbers = np.minimum((places * _LEVELS).astype(np.int64), _LEVELS - 1)
    numbers = np.unique(numbers, return_inverse=True)[1]
    names = []
    for number in range(int(numbers.max()) + 1):
        inside = [value for value, own in zip(values, numbers, strict=True) if own == number]
        names.append(f"{min(inside):.3g} to {max(inside):.3g}")
    return numbers, names


def _chance_level(levels: Mapping[str, Levels], ranks: Ranks) -> float:
    generator = numpy_generator(0, "tune/importance/chance")
    shuffled = generator.permuted(np.tile(ranks, (_RESAMPLES, 1)), axis=1)
    shares = [explained_share(numbers, shuffled) for numbers in levels.values()]
    return float(np.quantile(np.max(shares, axis=0), _CHANCE_QUANTILE))


def _interval(key: str, levels: Levels, ranks: Ranks) -> tuple[float, float]:
    """The basic bootstrap interval: redrawn trials repeat themselves, which raises every share, and
    reflecting it about the share that was seen takes that off again."""
    generator = numpy_generator(0, f"tune/importance/bootstrap/{key}")
    drawn = generator.integers(len(ranks), size=(_RESAMPLES, len(ranks)))
    low, high = np.quantile(explained_share(levels[drawn], ranks[drawn]), _INTERVAL)
    share = float(explained_share(levels, ranks))
    return float(np.clip(2 * share - high, 0, share)), float(np.clip(2 * share - low, share, 1))


def _describe(numbers: Levels, names: Sequence[str], ranks: Ranks) -> tuple[Level, ...]:
    levels = [
        Level(
            name=name,
            trials=int((numbers == number).sum()),
            mean_rank=float(ranks[numbers == number].mean()),
        )
        for number, name in enumerate(names)
    ]
    return tuple(sorted(levels, key=lambda level: level.mean_rank))
