"""JSON that somebody else may have written: it parses to plain, finite values, or not at all.

Python's own parser takes NaN and Infinity, turns 1e999 into infinity, lets the last of two equal
keys win, and leaves deep nesting to the interpreter's stack.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn


def parse_object(data: bytes | str) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        ValueError: it is no JSON object in UTF-8, nests too deeply, names a key twice, or holds a
            number that is not finite or has thousands of digits.
    """
    try:
        tree = json.loads(
            data,
            object_pairs_hook=_without_repeats,
            parse_float=_finite,
            parse_constant=_not_a_number,
        )
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    if not isinstance(tree, dict):
        raise ValueError("it is no JSON object")
    return tree


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a key comes twice")
    return tree


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is out of range")
    return value


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
