"""Networks larger than one bucket: sent in several, they take the same steps."""

import functools

import pytest
import torch

from cluster import sharded_average, zero_settings
from cluster.engine_difference import Difference, largest, measure
from cluster.engine_pairs import make_zero_engine, stir
from cluster.ranks import run_on_ranks
from cluster.sharded_average import ShardedAverage
from cluster.zero import ZeroEngine
from distgan.networks import build_generator
from tests.test_zero_steps import CASES, PROMISED, SAME_PARTS
from tests.tiny_networks import CPU, tiny_config

NAMES = ("1", "2", "1 accumulated", "2 accumulated", "3", "3 accumulated")


def measure_in_buckets(most_elements: int) -> list[Difference]:
    """On a rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero_settings, "MOST_BUCKET_ELEMENTS", most_elements)
        return [largest(steps) for steps in measure([CASES[name] for name in NAMES], 3)]


@pytest.mark.parametrize("most_elements", [1, 1500])
def test_a_step_in_several_buckets_equals_plain_pytorch(most_elements: int) -> None:
    """At 1, a bucket is as large as the largest parameter (and at stage 3 smaller than any)."""
    call = functools.partial(measure_in_buckets, most_elements)
    for name, found in zip(NAMES, run_on_ranks(call, (), world_size=2)[0], strict=True):
        print(name, found)
        assert found.within(PROMISED if "accumulated" in name else SAME_PARTS), (name, found)


def test_a_bucket_holds_the_largest_parameter_and_little_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that the test above has several."""
    monkeypatch.setattr(zero_settings, "MOST_BUCKET_ELEMENTS", 1)
    sharding = CASES["2"].cluster.generator
    settings = zero_settings.deepspeed_settings(sharding, [5, 2000, 3000, 7], "cpu")
    assert settings["zero_optimization"]["reduce_bucket_size"] == 3000


def gather_in_parts(most_elements: int) -> list[bool]:
    """On a rank: whether each averaged parameter comes back as it was."""
    config = tiny_config({"cluster.generator.zero_stage": 1})
    averaged, module = build_generator(config, CPU), build_generator(config, CPU)
    stir(averaged, seed=3)
    wanted = {name: p.detach().clone() for name, p in averaged.named_parameters()}
    sharding = config.cluster.generator
    engine = make_zero_engine("generator", module, config.optim.generator, sharding, "fp32", 1)
    assert isinstance(engine, ZeroEngine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_average, "MOST_GATHERED_ELEMENTS", most_elements)
        with ShardedAverage(averaged, engine).whole() as found:
            return [torch.equal(p, wanted[name]) for name, p in found.named_parameters()]


@pytest.mark.parametrize("most_elements", [1, 1000])
def test_an_average_that_is_gathered_in_parts_is_whole(most_elements: int) -> None:
    for equal in run_on_ranks(gather_in_parts, (most_elements,), world_size=3):
        assert len(equal) > 10 and all(equal)
