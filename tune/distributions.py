"""Where one hyperparameter's values come from: drawn, listed, counted in steps."""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import JsonValue

from distgan.config_loading import nearest
from distgan.errors import UserError

Kind = Literal["choice", "grid", "uniform", "quniform", "loguniform", "randint"]
KINDS: dict[str, str] = {
    "choice": "[VALUE, ...]",
    "grid": "[VALUE, ...]",
    "uniform": "[LOW, HIGH]",
    "quniform": "[LOW, HIGH, STEP]",
    "loguniform": "[LOW, HIGH]",
    "randint": "[LOW, HIGH], both included",
}

_LARGEST_WHOLE = 2**53  # up to here floats hold every whole number
_FINEST_STEP = 1e-11  # of the numbers themselves: values have 12 digits


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One of `KINDS`; numbers lie between low and high, both included."""

    kind: Kind
    values: tuple[JsonValue, ...] = ()
    """Of choice and grid."""
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    """Of quniform: low, low + step, ..."""

    @property
    def is_listed(self) -> bool:
        return self.kind in ("choice", "grid")

    @property
    def is_whole(self) -> bool:
        return self.kind == "randint"

    @property
    def size(self) -> int | None:
        """How many values there are; None for a continuum of them."""
        if self.is_listed:
            return len(self.values)
        if self.kind == "randint":
            return int(self.high) - int(self.low) + 1
        if self.kind == "quniform":
            return math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return None

    def value_at(self, index: int) -> JsonValue:
        """In order, from 0 on; not of a continuum."""
        if self.is_listed:
            return self.values[index]
        if self.kind == "randint":
            return int(self.low) + index
        return float(f"{self.low + index * self.step:.12g}")

    def index_of(self, value: JsonValue) -> int | None:
        """Where `value_at` has it; None if nowhere."""
        if self.is_listed:
            return self.values.index(value) if value in self.values else None
        if self.size is None or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        index = round((value - self.low) / (self.step or 1))
        return index if 0 <= index < self.size and self.value_at(index) == value else None

    def as_tree(self) -> dict[str, list[JsonValue]]:
        """As a space file holds it; `parse_distribution` reads it back."""
        if self.is_listed:
            return {self.kind: list(self.values)}
        numbers = [self.low, self.high, *([self.step] if self.step else [])]
        return {self.kind: [int(n) if self.is_whole else n for n in numbers]}

    def contains(self, value: JsonValue) -> bool:
        if self.size is not None:
            return self.index_of(value) is not None
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def sample(self, rng: np.random.Generator) -> JsonValue:
        """One draw: uniform over the values, or over their logarithms (loguniform)."""
        if self.size is not None:
            return self.value_at(int(rng.integers(self.size)))
        if self.kind == "loguniform":
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return min(max(drawn, self.low), self.high)  # rounding may leave the range
        return float(rng.uniform(self.low, self.high))

    def perturb(self, value: JsonValue, rng: np.random.Generator) -> JsonValue:
        """A value nearby: a neighbour in the list, or 0.8 or 1.2 times the number, in the range."""
        if self.size is not None:
            place = self.index_of(value)
            assert place is not None
            place += 1 if rng.random() < 0.5 else -1
            return self.value_at(min(max(place, 0), self.size - 1))
        assert isinstance(value, (int, float))
        moved = value * (1.2 if rng.random() < 0.5 else 0.8)
        return min(max(moved, self.low), self.high)

    def examples(self) -> list[JsonValue]:
        """Values that show whether the configuration takes what comes from here."""
        if self.is_listed:
            return list(self.values)
        if self.is_whole:
            return [int(self.low), int(self.high)]
        inside = self.low + (self.high - self.low) * 0.3819660113
        return [self.low, inside if self.kind != "quniform" else self.value_at(1), self.high]


def parse_distribution(key: str, tree: object) -> Distribution:
    """A distribution from what a space file holds for a key, such as {"choice": ["a", "b"]}.

    Raises:
        UserError: it is not one; the message names the key.
    """
    _refuse_nested(key, tree)
    if not isinstance(tree, dict) or len(tree) != 1:
        raise UserError(
            f"{key}: {tree!r} is not a distribution; write one, such as {key}: "
            "{choice: [VALUE, VALUE]} or {loguniform: [1e-5, 1e-3]}"
        )
    ((kind, given),) = tree.items()
    if kind not in KINDS:
        raise UserError(f"{key}: unknown distribution {kind!r}; {nearest(str(kind), KINDS)}")
    if given == []:
        raise UserError(f"{key}: {kind} [] is empty; write {kind}: {KINDS[kind]}")
    if not isinstance(given, list):
        raise UserError(f"{key}: {kind} takes {KINDS[kind]}, not {given!r}")
    if kind in ("choice", "grid"):
        return Distribution(kind=kind, values=tuple(given))
    wanted = 3 if kind == "quniform" else 2
    if len(given) != wanted:
        raise UserError(f"{key}: {kind} takes {KINDS[kind]}, not {given!r}")
    low, high, *more = (_number(key, kind, value) for value in given)
    _check_numbers(key, kind, given, low, high, more)
    return Distribution(kind=kind, low=low, high=high, step=more[0] if more else 0.0)


def _refuse_nested(key: str, tree: object) -> None:
    """Sections within sections, as in a configuration file, stand where a distribution should."""
    dotted, inner = key, tree
    while isinstance(inner, dict) and inner:
        name, value = next(iter(inner.items()))
        if not isinstance(value, dict):
            break
        dotted, inner = f"{dotted}.{name}", value
    if dotted != key:
        raise UserError(f"{key}: a space's keys are dotted, not nested; write {dotted}: {inner!r}")


def _check_numbers(
    key: str, kind: str, given: object, low: float, high: float, more: Sequence[float]
) -> None:
    if low >= high:
        raise UserError(f"{key}: {kind} {given!r} is empty: the first number must be the smaller")
    if not math.isfinite(high - low):
        raise UserError(f"{key}: {kind} {given!r} spans more than a number holds; take less")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{key}: loguniform {given!r} needs numbers above 0; use uniform")
    if kind == "randint" and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{key}: randint {given!r} needs whole numbers; use uniform")
    if kind == "randint" and max(-low, high) > _LARGEST_WHOLE:
        raise UserError(f"{key}: randint takes whole numbers of at most {_LARGEST_WHOLE}")
    if more and not 0 < more[0] <= high - low:
        raise UserError(f"{key}: quniform {given!r}: the step must fit between the numbers")
    if more and more[0] < max(-low, high) * _FINEST_STEP:
        raise UserError(f"{key}: quniform {given!r}: the step is lost in rounding; use uniform")


def _number(key: str, kind: str, value: object) -> float:
    """YAML takes 1e-5 for text (it wants 1.0e-5); here it is the number that it looks like."""
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):  # whole numbers may have any number of digits
        pass
    raise UserError(f"{key}: {kind} takes numbers, not {reprlib.repr(value)}")
