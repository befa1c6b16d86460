"""What a refusal of attention's options proposes is accepted, whatever levels have attention."""

import random
import re
from typing import Any

import pytest

from distgan.attention_checks import attention_sites
from distgan.config import Config
from distgan.config_loading import load_config, with_values
from distgan.errors import UserError
from tests.tiny import launch

ATTENTION = "model.attention."
VALUE = r"\[[-\d, ]+\]|\d+"
NETWORKS: list[dict[str, Any]] = [
    {},
    {"model.temporal_levels": 2, "data.clip_frames": 4},
    {"model.generator.channels": [16, 96, 64], "model.discriminator.channels": [48, 24, 80]},
    {"model.generator.channels": [6, 9, 15], "model.discriminator.channels": [6, 18, 30]},
    {"model.temporal_levels": 0, "data.clip_frames": 1},
]


def attention(values: dict[str, Any]) -> dict[str, Any]:
    return {f"{ATTENTION}{key}": value for key, value in values.items()}


def proposals(message: str) -> list[dict[str, Any]]:
    """The values that a message says to take, each as what it changes; the rest, such as "other
    model.attention.resolutions", can't be tried."""
    (refused,) = re.findall(r"^model\.attention\.(\w+)=", message)
    _, proposes, take = message.rpartition("; take ")
    if not proposes:
        return []
    joint = re.match(rf"({VALUE}) with a density (?:from|of) ([\d.]+)", take)
    if joint:
        return [{refused: read(joint[1]), "density": float(joint[2])}]
    bare = re.match(rf"(?:{VALUE})(?: or (?:{VALUE}))*", take)
    values = re.findall(VALUE, bare[0]) if bare else []
    found: list[dict[str, Any]] = [{refused: read(value)} for value in values]
    found += [{"density": float(n)} for n in re.findall(r"density (?:from|of) ([\d.]+)", take)]
    named = re.findall(rf"model\.attention\.(\w+)=({VALUE}|[a-z]+)", take)
    return found + [{key: read(value)} for key, value in named]


def read(value: str) -> Any:
    if value.startswith("["):
        return [int(number) for number in value.strip("[]").split(",")]
    return int(value) if value.isdigit() else value


def drawn(draw: random.Random) -> dict[str, Any]:
    """One option that may well not fit, others that do anywhere."""
    kind = draw.choice(["window", "sparse", "sparse", "sparse", "self", "dense", "additive"])
    sizes = [draw.choice([1, 2, 3, 4, 5, 8, 9, 17]) for _ in range(3)]
    options: dict[str, Any] = {"kind": kind, "resolutions": draw.choice([[4], [8, 4], [16, 4]])}
    if kind == "window":
        return options | {"window": [draw.choice([0, size, size, -1]) for size in sizes]}
    if kind != "sparse":
        positions = draw.choice(["rotary", "rotary", "none"])
        odd = draw.choice([{"heads": 1, "head_dim": draw.choice([1, 7])}, {"head_dim": 0}])
        return options | {"heads": draw.randint(1, 20), "positions": positions} | odd
    options |= {"block": [1, 2, 2], "reach": [0, 0, 0], "density": draw.random()}
    wrong = draw.choice(["block", "reach", "density"])
    if wrong == "block":
        return options | {"block": [draw.choice([size, size, 0]) for size in sizes]}
    if wrong == "reach":
        return options | {"reach": [draw.choice([0, 1, 99, -1]) for _ in range(3)]}
    return options | {"density": draw.choice([0, 0.0005, 0.01, 0.06])}


@pytest.mark.parametrize("number", range(len(NETWORKS)))
def test_what_a_message_proposes_is_accepted(number: int) -> None:
    draw = random.Random(number)
    base = with_values(load_config("demo"), NETWORKS[number])
    tried = 0
    for _ in range(400):
        options = drawn(draw)
        try:
            with_values(base, attention(options))
        except UserError as error:
            found = proposals(str(error))
            for proposal in found:
                with_values(base, attention(options | proposal))
            tried += len(found)
    assert tried > 100


@pytest.mark.parametrize(("values", "take"), [
    ({"kind": "window", "window": [9, 9, 9]}, "take [4, 4, 4] (0 "),
    ({"kind": "sparse", "block": [9, 9, 9]}, "take [4, 4, 4]"),
    ({"kind": "sparse", "density": 0, "reach": [0, 0, 0]}, "take a density from 0.001 to 1"),
    ({"kind": "sparse", "density": 0.06}, "take a density from 0.188 to 1"),
    ({"kind": "sparse", "reach": [99, 99, 99]}, "0.993 to 1, or model.attention.reach=[0, 0, 0]"),
    ({"kind": "self", "head_dim": 31}, "take 30 or 32, or model.attention.positions=none"),
])  # fmt: skip
def test_the_nearest_values_of_several_levels(values: dict[str, Any], take: str) -> None:
    with pytest.raises(UserError) as refused:
        with_values(load_config("demo"), attention({"resolutions": [8, 4]} | values))
    assert take in str(refused.value)


def test_only_rotary_positions_need_an_even_width() -> None:
    odd = {"head_dim": 31}
    for allowed in ({"kind": "additive"}, {"positions": "none"}, {"kind": "dense", "heads": 2}):
        with_values(Config(), attention(odd | allowed))
    for refused in ({"kind": "self"}, {"kind": "dense", "heads": 3}, {"kind": "window"}):
        with pytest.raises(UserError, match="head_dim=31 must be even"):
            with_values(Config(), attention(odd | refused))


NOWHERE = [
    ({"placement": ["encoder"]}, "conditioning.task=none there is no encoder"),
    ({"resolutions": []}, "the levels have [32, 16, 8]"),
    ({"placement": ["encoder"], "kind": "none", "mlp_width": 5}, "and model.attention.mlp_width=0"),
]


@pytest.mark.parametrize(("values", "remedy"), NOWHERE)
def test_attention_that_exists_nowhere_is_refused(values: dict[str, Any], remedy: str) -> None:
    with pytest.raises(UserError, match="no level has attention") as refused:
        with_values(Config(), attention(values))
    assert remedy in str(refused.value) and "model.attention.kind=none" in str(refused.value)
    with_values(Config(), attention(values | {"kind": "none", "mlp_width": 0}))


def test_the_encoder_counts_where_a_task_builds_it() -> None:
    only = attention({"placement": ["encoder"]})
    config = with_values(Config(), only | {"conditioning.task": "prediction"})
    assert [site.place for site in attention_sites(config)] == ["encoder"]
    four = {"model.generator.channels": [8, 8, 8, 8], f"{ATTENTION}resolutions": [4]}
    both = attention({"placement": ["encoder", "discriminator"]})
    with_values(Config(), four | both | {"conditioning.task": "prediction"})
    with pytest.raises(UserError, match=r"no level has height 4; the levels have \[32, 16, 8\]"):
        with_values(Config(), four | both)


def test_a_height_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"resolutions=\[8, 16, 8\] names .* take \[8, 16\]"):
        with_values(Config(), attention({"resolutions": [8, 16, 8]}))


def test_the_doctor_refuses_attention_that_exists_nowhere() -> None:
    done = launch("doctor", "--preset", "demo", "model.attention.placement=[encoder]")
    assert done.returncode == 2 and "no level has attention" in done.stderr
