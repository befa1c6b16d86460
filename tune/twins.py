"""Which configurations are the same training: what its kind of attention does not read can't change
a network, so trials that differ in nothing else end with equal numbers, bit for bit."""

import json
from collections.abc import Mapping

from pydantic import JsonValue

_SECTION = "model.attention."
KIND, HEADS, HEAD_DIM, MLP, PLACEMENT, RESOLUTIONS = (
    _SECTION + name
    for name in ("kind", "heads", "head_dim", "mlp_width", "placement", "resolutions")
)
_PAIRS = ("heads", "head_dim", "positions", "scores")
READ_BY: dict[JsonValue, tuple[str, ...]] = {
    "none": (),
    "additive": ("heads", "head_dim"),
    "dense": _PAIRS,
    "self": _PAIRS,
    "factorised": _PAIRS,
    "window": (*_PAIRS, "window"),
    "sparse": (*_PAIRS, "block", "reach", "density"),
}
"""Kind of attention -> keys of its section that its layer looks at."""
_READ_BY_SOME = frozenset(name for names in READ_BY.values() for name in names)


def inert_keys(values: Mapping[str, JsonValue]) -> set[str]:
    """Keys that have no say in a configuration, given as dotted key -> value of all keys."""
    kind = values[KIND]
    inert = {_SECTION + name for name in _READ_BY_SOME.difference(READ_BY[kind])}
    if kind == "none" and not values[MLP]:
        inert |= {PLACEMENT, RESOLUTIONS}
    return inert


def identity(values: Mapping[str, JsonValue], keys: Mapping[str, object]) -> str:
    """Equal for two configurations that are the same training, if they differ in `keys` alone and
    hold equal values where a key is inert."""
    told = {key: _plain(key, values[key]) for key in sorted({*keys, HEADS, HEAD_DIM})}
    heads, head_dim = values[HEADS], values[HEAD_DIM]
    if values[KIND] == "dense" and head_dim:  # its one head is as wide as all of them
        assert isinstance(heads, int) and isinstance(head_dim, int)
        told |= {HEADS: 1, HEAD_DIM: heads * head_dim}
    return json.dumps(told)


def _plain(key: str, value: JsonValue) -> JsonValue:
    """3 and 3.0 are one number; the order of places does not count."""
    if key in (PLACEMENT, RESOLUTIONS) and isinstance(value, list):
        return sorted(value, key=str)
    return int(value) if isinstance(value, float) and value.is_integer() else value
