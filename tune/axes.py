"""The axes of a sweep's plots: which are logarithmic, what their ticks are and say."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tune.records import SweepSpec

_WIDE_RANGE = 20.0  # largest over smallest value from which an axis is logarithmic
_MOST_DIGITS = 10
_MARKED = ((3.0, (1,)), (1.5, (1, 3)), (0.7, (1, 2, 5)), (0.0, (1, 2, 3, 4, 5, 7)))
"""Orders of magnitude from which on these multiples of powers of ten are labelled."""


def is_wide(values: Sequence[float]) -> bool:
    """Whether positive values span so much that only logarithms show them all."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _WIDE_RANGE


def is_log(spec: SweepSpec, key: str, values: Sequence[float]) -> bool:
    """Whether a hyperparameter's axis is logarithmic: as it is sampled, or as listed values lie."""
    (kind,) = spec.space.get(key) or {"choice": []}
    return kind == "loguniform" or (kind in ("choice", "grid") and is_wide(values))


def set_log(axis: Axis, values: Sequence[float]) -> None:
    """Makes an axis logarithmic, with few enough labels that they have room: 60, 0.0003, 1e-05."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    positive = [value for value in values if value > 0]
    span = math.log10(max(positive) / min(positive))
    marked = next((subs for least, subs in _MARKED if span >= least), _MARKED[-1][1])
    axis.set_major_locator(LogLocator(subs=marked))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axis.set_minor_formatter(NullFormatter())


def texts(values: Sequence[float], digits: int = 3) -> list[str]:
    """The values with so many digits, or with more where that tells unlike ones apart."""
    for more in range(digits, _MOST_DIGITS + 1):
        # Twice: 3357.61 with three digits is 3360, not 3.36e+03.
        shown = [f"{float(f'{value:.{more}g}'):.{_MOST_DIGITS}g}" for value in values]
        if len(set(shown)) == len(set(values)):
            break
    return shown


def categories_of(values: Sequence[Any]) -> list[str]:
    """The distinct values as texts, if they are not all numbers."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return []
    return sorted({str(value) for value in values})


Column = tuple[list[float], list[tuple[float, str]], bool]
"""A parallel axis: heights of the values (0 to 1), ticks, and whether these are categories."""


def column(spec: SweepSpec, key: str, values: Sequence[Any]) -> Column:
    """The parallel axis of a hyperparameter."""
    categories = categories_of(values)
    if not categories:
        return numbers(values, log=is_log(spec, key, values))
    heights = {text: i / max(1, len(categories) - 1) for i, text in enumerate(categories)}
    return [heights[str(v)] for v in values], [(h, text) for text, h in heights.items()], True


def numbers(values: Sequence[float], *, log: bool, digits: int = 3) -> Column:
    """The parallel axis of numbers, with ticks at its ends and, but for whole numbers, between."""
    low, high = min(values), max(values)
    log = log and low > 0

    def height(value: float) -> float:
        if low == high:
            return 0.5
        if log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    middle = math.sqrt(low * high) if log else (low + high) / 2
    marked = (low, high) if isinstance(low, int) else (low, middle, high)
    distinct = list(dict.fromkeys(marked))
    ticks = list(zip(map(height, distinct), texts(distinct, digits), strict=True))
    return [height(value) for value in values], ticks, False
