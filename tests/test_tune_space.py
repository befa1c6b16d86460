"""Search spaces: what they hold, what they refuse, and that draws follow from the seed alone."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distgan.attention import AttentionLayer
from distgan.config import AttentionConfig
from distgan.config_loading import load_config
from distgan.errors import UserError
from tests.tiny import TINY
from tune.space import Space, read_space
from tune.spaces import SPACES
from tune.twins import READ_BY

BASE = load_config("demo")


def space(**keys: Any) -> Space:
    """Keys with __ for dots."""
    return Space({key.replace("__", "."): value for key, value in keys.items()}, BASE)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({}, "the search space is empty"),
        ({"optim.generator.lrr": {"choice": [1]}}, "did you mean 'optim.generator.lr'"),
        ({"optim.generator.lr": {"chioce": [1]}}, "did you mean 'choice'"),
        ({"optim.generator.lr": 3}, "is not a distribution"),
        ({"optim.generator.lr": {"choice": []}}, "choice [] is empty; write choice: [VALUE, ...]"),
        ({"optim.generator.lr": {"choice": 3}}, "takes [VALUE, ...], not 3"),
        (
            {"model": {"attention": {"kind": {"choice": ["none", "self"]}, "heads": {}}}},
            "not nested; write model.attention.kind: {'choice': ['none', 'self']}",
        ),
        (
            {"model.attention": {"kind": {"choice": ["none"]}}},
            "write model.attention.kind: {'choice': ['none']}",
        ),
        ({"optim.generator.lr": {"uniform": [1]}}, "takes [LOW, HIGH]"),
        ({"optim.generator.lr": {"uniform": [1e-3, 1e-5]}}, "the first number must be the smaller"),
        ({"optim.generator.lr": {"uniform": ["a", 1]}}, "takes numbers, not 'a'"),
        ({"optim.generator.lr": {"loguniform": [0, 1]}}, "needs numbers above 0"),
        ({"optim.generator.lr": {"uniform": [-1, 1]}}, "greater than 0"),
        ({"loss.gamma": {"quniform": [0, 1, 2]}}, "the step must fit"),
        ({"loss.gamma": {"quniform": [1, 20, 1e-12]}}, "the step is lost in rounding"),
        ({"loss.gamma": {"uniform": [1, 10**400]}}, "takes numbers, not 1000"),
        ({"loss.gamma": {"uniform": [-1e308, 1e308]}}, "spans more than a number holds"),
        ({"loss.gamma": {"choice": [10**400]}}, "loss.gamma="),
        ({"model.attention.heads": {"randint": [1, 10**30]}}, "whole numbers of at most"),
        ({"model.attention.heads": {"randint": [1.5, 4]}}, "needs whole numbers"),
        ({"model.attention.heads": {"uniform": [1, 4]}}, "valid integer"),
        ({"model.attention.heads": {"choice": ["many"]}}, "model.attention.heads='many'"),
        ({"model.attention.heads": {"choice": [2, "2"]}}, "the value 2 comes twice"),
        ({"model.attention.kind": {"choice": ["selfish"]}}, "model.attention.kind='selfish'"),
        ({"model.attention": {"choice": [1]}}, "model.attention"),
        ({"model.attention.resolutions": {"choice": [[5], [3]]}}, "no possible combination"),
        ({"seed": {"choice": [1, 2]}}, "use --repeats"),
        ({"run.dir": {"choice": ["a"]}}, "a folder of its own"),
        ({"train.max_steps": {"choice": [1, 2]}}, "same budget"),
        ({"cluster.num_workers": {"choice": [1, 2]}}, "same devices"),
    ],
)
def test_a_bad_space_is_refused_with_a_remedy(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        Space(tree, BASE)
    assert words in str(error.value)


def test_values_are_those_that_the_configuration_holds() -> None:
    made = space(optim__generator__lr={"choice": ["1e-5", 0.5]}, loss__gamma={"uniform": [1, "2"]})
    assert made.keys["optim.generator.lr"].values == (1e-5, 0.5)
    assert made.keys["loss.gamma"].high == 2.0


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({"uniform": [1, 3]}, 1, 3),
        ({"loguniform": [1e-3, 1e1]}, 1e-3, 1e1),
        ({"quniform": [1, 2, 0.25]}, 1, 2),
        ({"randint": [2, 5]}, 2, 5),
    ],
)
def test_draws_fill_the_range_and_stay_in_it(
    given: dict[str, Any], low: float, high: float
) -> None:
    made = space(loss__gamma=given)
    drawn = [made.sample(0, index)["loss.gamma"] for index in range(300)]
    numbers = [value for value in drawn if isinstance(value, (int, float))]
    assert len(numbers) == 300
    assert low <= min(numbers) and max(numbers) <= high
    assert min(numbers) < low + (high - low) * 0.1
    assert max(numbers) > high - (high - low) * 0.2
    assert all(made.keys["loss.gamma"].contains(value) for value in drawn)
    if "loguniform" in given:  # as many below the middle of the logarithms as above
        assert 100 < sum(value < 1e-1 for value in numbers) < 200


def test_draws_follow_from_seed_and_index_and_other_keys_leave_them_alone() -> None:
    one = space(loss__gamma={"uniform": [1, 2]})
    two = space(optim__generator__lr={"loguniform": [1e-5, 1]}, loss__gamma={"uniform": [1, 2]})
    drawn = [one.sample(3, index)["loss.gamma"] for index in range(20)]
    assert drawn == [two.sample(3, index)["loss.gamma"] for index in range(20)]
    assert len(set(drawn)) == 20
    assert drawn != [one.sample(4, index)["loss.gamma"] for index in range(20)]


def test_impossible_combinations_are_never_sampled() -> None:
    made = space(
        model__attention__heads={"choice": [2, 3]}, model__attention__head_dim={"choice": [0, 16]}
    )
    assert "does not divide" in made.problem({"model.attention.heads": 3,
                                              "model.attention.head_dim": 0})  # fmt: skip
    rows = [made.sample(0, index) for index in range(60)]
    assert all(not made.problem(row) for row in rows)
    assert set(Counter(str(row) for row in rows).values()) and len({str(r) for r in rows}) == 3


@pytest.mark.parametrize(
    ("given", "inside", "outside"),
    [
        ({"randint": [1, 10**9]}, 987_654_321, 10**9 + 1),
        ({"quniform": [1, 20, 1e-9]}, 19.999999999, 19.9999999995),
    ],
)
def test_ranges_of_any_size_are_searched_at_once(
    given: dict[str, Any], inside: float, outside: float
) -> None:
    made = space(loss__gamma=given)
    each = made.keys["loss.gamma"]
    assert each.contains(inside) and not each.contains(outside) and not each.contains(math.inf)
    place = each.index_of(inside)
    assert place is not None and each.value_at(place) == inside
    rng = np.random.default_rng(0)
    for index in range(20):
        value = made.sample(0, index)["loss.gamma"]
        assert each.contains(value) and each.contains(each.perturb(value, rng))
    assert made.count(50) == 50
    with pytest.raises(UserError, match="combinations, more than 10000; list fewer values"):
        made.grid()


def test_a_grid_holds_every_combination_and_refuses_a_continuum() -> None:
    made = space(loss__gamma={"grid": [1, 2]}, model__attention__heads={"randint": [1, 3]})
    rows = [tuple(row.values()) for row in made.grid()]
    assert rows == [(1.0, 1), (1.0, 2), (1.0, 3), (2.0, 1), (2.0, 2), (2.0, 3)]
    with pytest.raises(UserError, match="list values, such as"):
        space(loss__gamma={"uniform": [1, 2]}).grid()


OTHER: dict[str, Any] = {
    "heads": 2, "head_dim": 4, "positions": "none", "scores": "l2", "window": (1, 3, 3),
    "block": (1, 2, 2), "reach": (0, 0, 0), "density": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(set(READ_BY) - {"none"}, key=str))
@pytest.mark.parametrize("key", sorted(OTHER))
def test_a_key_is_inert_where_the_layer_computes_the_same(kind: Any, key: str) -> None:
    config = AttentionConfig(kind=kind, heads=4, head_dim=8, block=(2, 2, 2), density=1.0)
    changed = config.model_copy(update={key: OTHER[key]})

    def computed(config: AttentionConfig) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layer = AttentionLayer(16, config)
        weights = [torch.randn_like(weight) for weight in layer.parameters()]
        for weight, drawn in zip(layer.parameters(), weights, strict=True):
            weight.data = drawn
        return [*weights, layer(torch.randn(1, 4, 4, 4, 16))]

    one, other = computed(config), computed(changed)
    pairs = zip(one, other, strict=False)  # l2 has no norms, so fewer weights
    same = len(one) == len(other) and all(torch.equal(a, b) for a, b in pairs)
    if key == "block" or key == "reach":  # all pairs are seen at density 1, by any block
        return
    assert same == (key not in READ_BY[kind])


def test_what_has_no_say_takes_the_base_s_value_and_twins_are_known() -> None:
    made = space(
        model__attention__kind={"choice": ["none", "dense", "self", "sparse"]},
        model__attention__heads={"choice": [2, 4]},
        model__attention__head_dim={"choice": [16, 32]},
        model__attention__density={"uniform": [0.3, 0.9]},
        loss__gamma={"randint": [1, 3]},
    )

    def named(kind: str, heads: int, head_dim: int, density: float, gamma: float) -> str:
        values = (kind, heads, head_dim, density, gamma)
        return made.identity(dict(zip(made.keys, values, strict=True)))

    assert named("none", 2, 16, 0.4, 1) == named("none", 4, 32, 0.5, 1.0)
    assert named("none", 2, 16, 0.4, 1) != named("none", 2, 16, 0.4, 2)
    assert named("dense", 2, 32, 0.4, 1) == named("dense", 4, 16, 0.4, 1)
    assert named("dense", 2, 32, 0.4, 1) != named("dense", 4, 32, 0.4, 1)
    assert named("self", 2, 32, 0.4, 1) != named("self", 4, 16, 0.4, 1)
    assert named("sparse", 2, 32, 0.4, 1) != named("sparse", 2, 32, 0.5, 1)
    base = made.base_overrides
    for row in (made.sample(0, index) for index in range(40)):
        if row["model.attention.kind"] == "none":
            assert [row[f"model.attention.{name}"] for name in ("heads", "density")] == [
                base[f"model.attention.{name}"] for name in ("heads", "density")
            ]


def test_a_space_is_counted_without_twins_and_without_the_base() -> None:
    kinds = {"choice": ["none", "self"]}  # the base is self
    windows = {"choice": [[3, 3, 3], [0, 3, 3]]}
    made = space(model__attention__kind=kinds, model__attention__window=windows)
    assert made.count(9) == 1
    assert space(loss__gamma={"uniform": [10, 20]}).count(9) == 9
    assert Space(read_space("both"), BASE).count(9) == 9


@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize("preset", ["demo", "small-64", "base-128"])
def test_ready_spaces_fit_the_presets(name: str, preset: str) -> None:
    made = Space(read_space(name), load_config(preset))
    rows = [made.sample(0, index) for index in range(60)]
    assert len({str(row) for row in rows}) > 30
    if name != "optimizer":  # each size of a block comes up where it is read
        sparse = [row for row in rows if row["model.attention.kind"] == "sparse"]
        assert len({str(row["model.attention.block"]) for row in sparse}) >= 2


def test_a_space_file_is_read_and_a_missing_one_named(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("optim.generator.lr: {loguniform: [1e-5, 1e-3]}\n")
    made = Space(read_space(str(file)), load_config(overrides=TINY))
    value = made.sample(0, 0)["optim.generator.lr"]
    assert isinstance(value, float) and 1e-5 <= value <= 1e-3
    with pytest.raises(UserError, match="did you mean 'optimizer'"):
        read_space("optimiser")
    with pytest.raises(UserError, match="can't read"):
        read_space(str(tmp_path / "none.yaml"))
