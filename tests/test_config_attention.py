"""The keys of attention: what fits no level is refused with the nearest values that do."""

from typing import Any

import pytest

from distgan.attention_checks import level_resolutions
from distgan.config import Config
from distgan.config_loading import load_config, with_values
from distgan.errors import UserError
from distgan.presets import PRESETS

KIND = "model.attention.kind"
MISFITS: list[tuple[dict[str, Any], str, str]] = [
    ({KIND: "window", "model.attention.window": [3, 9, 3]}, "window=[3, 9, 3]", "[3, 8, 3]"),
    ({KIND: "window", "model.attention.window": [3, -1, 3]}, "window=[3, -1, 3]", "from 1 on"),
    ({KIND: "window", "model.attention.window": [1, 1, 1]}, "window=[1, 1, 1]", "[1, 3, 3]"),
    ({KIND: "sparse", "model.attention.block": [2, 2, 16]}, "block=[2, 2, 16]", "[2, 2, 8]"),
    ({KIND: "sparse", "model.attention.block": [0, 2, 2]}, "block=[0, 2, 2]", "from 1 on"),
    ({KIND: "sparse", "model.attention.reach": [0, -1, 0]}, "reach=[0, -1, 0]", "from 0 on"),
    ({KIND: "sparse", "model.attention.density": 0}, "density=0", "from 0.04 to 1"),
    ({KIND: "sparse", "model.attention.density": 0.02}, "density=0.02", "from 0.04 to 1"),
    (
        {KIND: "sparse", "model.attention.block": [1, 1, 1], "model.attention.reach": [0, 0, 0],
         "model.attention.density": 0.001},
        "density=0.001", "from 0.003 to 1",
    ),
    ({"model.attention.head_dim": 31}, "head_dim=31", "30 or 32"),
    ({"model.attention.head_dim": 0, "model.attention.heads": 5}, "heads=5", "take 4 or 8"),
    (
        {KIND: "factorised", "data.clip_frames": 2, "prepare.stored_frames": 0,
         "model.attention.resolutions": [8]},
        "kind=factorised", "two frames",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "named", "remedy"), MISFITS)
def test_attention_that_does_not_fit_names_the_nearest_values(
    values: dict[str, Any], named: str, remedy: str
) -> None:
    with pytest.raises(UserError) as raised:
        with_values(Config(), values)
    assert f"model.attention.{named}" in str(raised.value) and remedy in str(raised.value)


def test_what_a_message_proposes_is_allowed() -> None:
    for values in (
        {KIND: "window", "model.attention.window": [3, 8, 3]},
        {KIND: "window", "model.attention.window": [0, 1, 1]},
        {KIND: "sparse", "model.attention.block": [2, 2, 8]},
        {KIND: "sparse", "model.attention.density": 0.047},
        {KIND: "sparse", "model.attention.block": [1, 1, 1], "model.attention.density": 0.006},
        {"model.attention.head_dim": 0, "model.attention.heads": 8},
    ):
        with_values(Config(), values)
    # Options of other kinds are not looked at.
    with_values(Config(), {KIND: "self", "model.attention.window": [99, 99, 99]})
    # Attention in one network alone needs that network's levels only.
    four = {"model.generator.channels": [8, 8, 8, 8], "model.attention.resolutions": [4]}
    with_values(Config(), four | {"model.attention.placement": ["decoder"]})
    with pytest.raises(UserError, match="the levels have"):
        with_values(Config(), four | {"model.attention.placement": ["discriminator"]})


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("kind", ["additive", "dense", "self", "factorised", "window", "sparse"])
def test_every_kind_fits_every_preset_by_its_defaults(preset: str, kind: str) -> None:
    load_config(preset, overrides=[f"{KIND}={kind}", "model.attention.mlp_width=8"])


def test_attention_that_only_one_network_has_is_allowed() -> None:
    config = with_values(
        Config(),
        {"model.generator.channels": [8, 8, 8, 8], "model.attention.resolutions": [4]},
    )
    assert level_resolutions(config) == ([32, 16, 8, 4], [32, 16, 8])
