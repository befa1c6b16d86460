"""A step of the ZeRO engines is a step of plain PyTorch, from the same state, at every stage."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from cluster.engine_difference import Difference, largest, measure, plain_state
from cluster.engine_pairs import (
    own_places,
    plain_engines,
    random_clips,
    sharded_engines,
    stir,
)
from cluster.ranks import run_on_ranks
from distgan.adversarial_step import AdversarialStep
from distgan.config import Config, NetworkOptimConfig
from distgan.config_loading import with_values
from distgan.engine import PlainEngine
from distgan.timing import PartTimer
from tests.tiny_networks import CPU, tiny_config

BOTH = ("generator", "discriminator")
# Where sums keep their order. Measured, in the order of `Difference`: 2.2e-5, 4.0e-7, 2.8e-7,
# 5.9e-8, 1.9e-9 and 1.2e-7, bit-equal in most cases.
SAME_PARTS = Difference(
    weights=3e-5, gradients=2e-6, outputs=1e-6, losses=2e-7, penalties=1e-7, gradient_norms=5e-7
)
# What the project promises where sums have another order: losses within 1e-6 and gradients within
# 2e-4 by norm. Measured: in accumulated parts 8.8e-5, 3.1e-7, 9.1e-7, 6.0e-8, 3.5e-10 and 1.3e-7;
# on one joined batch 4.7e-5, 5.0e-5, 1.7e-6, 6.0e-8, 4.3e-7 and 8.4e-6. Under Adam the weights are
# the coarsest: a gradient that is noise makes a full step.
PROMISED = Difference(
    weights=2e-4, gradients=2e-4, outputs=5e-5, losses=1e-6, penalties=1e-6, gradient_norms=2e-4
)


def case(stages: tuple[int, int], optim: dict[str, Any] | None = None, **values: Any) -> Config:
    """`values` with double underscores for dots; `optim` for both networks."""
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    for name, stage in zip(BOTH, stages, strict=True):
        dotted[f"cluster.{name}.zero_stage"] = stage
        dotted |= {f"optim.{name}.{key}": value for key, value in (optim or {}).items()}
    return tiny_config({"loss.penalty_interval": 2, "conditioning.context_frames": 1} | dotted)


# The gradient is read from the weights' change, which must stand out from their rounding.
PLAIN_SGD = {"kind": "sgd", "lr": 1e-2}
MOMENTUM = {"kind": "sgd", "momentum": 0.9, "lr": 1e-2}
ACCUMULATED = {"train__accumulation": 2, "train__batch_size": 8}
OFFLOADED = {f"cluster__{name}__offload_optimizer": True for name in BOTH}
WEIGHTS_OFFLOADED = {f"cluster__{name}__offload_parameters": True for name in BOTH}
CASES: dict[str, Config] = {
    "0": case((0, 0), {"clip_norm": 0.05}),
    "1": case((1, 1), loss__penalty_form="exact"),
    "2": case((2, 2), {"clip_norm": 0.05, "kind": "adamw", "weight_decay": 0.1}),
    "3": case((3, 3), {"clip_norm": 0.05}, train__augment__probability=0.7),
    "0 accumulated": case((0, 0), MOMENTUM, **ACCUMULATED),
    "1 accumulated": case((1, 1), {"clip_norm": 0.05}, **ACCUMULATED),
    "2 accumulated": case((2, 2), MOMENTUM, **ACCUMULATED),
    "3 accumulated": case((3, 3), {"clip_norm": 0.05}, **ACCUMULATED),
    "3 and 2, exact": case((3, 2), loss__penalty_form="exact", loss__kind="bce"),
    "1 and 0, hinge": case((1, 0), PLAIN_SGD, loss__kind="hinge", loss__penalty="r1"),
    "3, along gradient": case((3, 3), loss__penalty_form="gradient_direction"),
    "2, sparse": case((2, 2), model__attention__kind="sparse", model__attention__mlp_width=4,
                      model__attention__density=0.5, model__attention__scores="l2"),
    "3, factorised": case((3, 3), model__attention__kind="factorised"),
    "3 and 1, window, exact": case((3, 1), model__attention__kind="window",
                                   model__attention__window=[0, 3, 3], loss__penalty_form="exact"),
    "3, additive": case((3, 3), model__attention__kind="additive"),
    "0 and 3, bf16": case((0, 3), train__precision="bf16", **ACCUMULATED),
    "1 and 2, bf16": case((1, 2), train__precision="bf16", conditioning__task="prediction"),
    "3, bf16": case((3, 3), train__precision="bf16", conditioning__task="prediction"),
    "1 offloaded": case((1, 1), {"clip_norm": 0.05}, **ACCUMULATED, **OFFLOADED),
    "2 offloaded": case((2, 2), {"clip_norm": 0.05}, **OFFLOADED),
    "3 offloaded": case((3, 3), {"clip_norm": 0.05}, **ACCUMULATED, **OFFLOADED,
                        **WEIGHTS_OFFLOADED),
    "3, weights alone offloaded": case((3, 3), {"clip_norm": 0.05}, **WEIGHTS_OFFLOADED),
    "0, exact": case((0, 0), loss__penalty_form="exact"),
}  # fmt: skip
JOINED_CASES = (
    "0",
    "1",
    "2",
    "3",
    "0 accumulated",
    "1 accumulated",
    "2 accumulated",
    "3 accumulated",
    "3 and 2, exact",
    "3, along gradient",
    "0, exact",
)
JOINED_CASES_OF_ADAM = ("0", "1", "2", "3", "1 accumulated", "3 accumulated", "3 and 2, exact")
# Adam turns a gradient that is noise into a full step. A large rate: the step shall be far above
# the rounding of the weights; larger ones (1.0) lead to networks whose own rounding is 1e-5.
PLAIN_STEP = {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "clip_norm": 0.05, "weight_decay": 0.0}


# On one joined batch under Adam. Measured: 3.3e-4, 4.3e-5, 3.1e-6, 1.2e-7, 1.9e-7 and 2.7e-6.
PROMISED_OF_ADAM = dataclasses.replace(PROMISED, weights=1e-3)
# Over 100 steps on one joined batch, penalties by finite differences are coarser, and so they are
# between plain PyTorch in parts and whole (2.7e-6: a test below). Measured, on two and three ranks:
# 6.7e-5, 1.5e-4, 1.5e-5, 1.8e-7, 4.2e-6 and 1.1e-4.
JOINED = dataclasses.replace(PROMISED, penalties=1e-5)
JOINED_OF_ADAM = dataclasses.replace(JOINED, weights=1e-3, outputs=2e-4)
# A last bit of a float32 weight flips the rounding to bf16 (2e-3) of what follows from it. Measured
# over 100 steps on three ranks: 1.2e-1, 1.7e-2, 9.3e-4, 1.5e-4 (losses or penalties) and 2.3e-3.
IN_BF16 = Difference(
    weights=3e-1, gradients=5e-2, outputs=3e-3, losses=5e-4, penalties=5e-4, gradient_norms=7e-3
)


GENTLE = {"kind": "sgd", "lr": 1e-3, "momentum": 0.5}


@dataclass(frozen=True)
class Found:
    """What all tests here look at: starting processes takes longer than the steps."""

    same_parts: dict[str, Difference]
    joined: dict[str, Difference]
    free: list["Free"]


@dataclass(frozen=True)
class Free:
    """Of steps without a common state, at one stage."""

    difference: float
    """The largest of a weight."""
    gradient_norms: dict[str, float]
    """The largest of each network's."""


@pytest.fixture(scope="module")
def found() -> Found:
    return run_on_ranks(compare_all, (), world_size=2)[0]


def by_plain_steps(config: Config) -> Config:
    values = {f"optim.{net}.{key}": value for net in BOTH for key, value in PLAIN_STEP.items()}
    return with_values(config, values)


def joined_cases() -> dict[str, Config]:
    return {name: by_plain_steps(CASES[name]) for name in JOINED_CASES} | joined_cases_of_adam()


def joined_cases_of_adam() -> dict[str, Config]:
    """AdamW in some."""
    return {f"{name}, by Adam": CASES[name] for name in JOINED_CASES_OF_ADAM}


def compare_all() -> Found:
    """On a rank."""
    same_parts = map(largest, measure(list(CASES.values()), 3))
    joined = map(largest, measure(list(joined_cases().values()), 3, joined=True))
    free = [case((s, s), GENTLE, loss__gamma=0.1, loss__kind="hinge") for s in range(4)]
    return Found(
        same_parts=dict(zip(CASES, same_parts, strict=True)),
        joined=dict(zip(joined_cases(), joined, strict=True)),
        free=[run_freely(config, 20) for config in free],
    )


@pytest.mark.parametrize("name", CASES)
def test_a_step_equals_plain_pytorch(name: str, found: Found) -> None:
    """Accumulated parts of several ranks are summed in another order: there a single weight whose
    gradient is near 0, 2.2e-6 apart by Adam's first step of 2e-4, makes 8.7e-5 of `weights`."""
    other_order = CASES[name].train.accumulation > 1
    limit = PROMISED if other_order else SAME_PARTS
    print(found.same_parts[name])
    assert found.same_parts[name].within(limit), found.same_parts[name]


@pytest.mark.parametrize("name", joined_cases())
def test_a_step_equals_plain_pytorch_on_the_joined_batch(name: str, found: Found) -> None:
    limit = PROMISED_OF_ADAM if name in joined_cases_of_adam() else PROMISED
    print(found.joined[name])
    assert found.joined[name].within(limit), found.joined[name]


@pytest.mark.parametrize("stage", range(4))
def test_twenty_free_steps_stay_together_at_gentle_settings(stage: int, found: Found) -> None:
    """Under SGD and with large gradients, none of which is clipped: DeepSpeed's own default clips
    at 1, which Adam would hide."""
    free = found.free[stage]
    assert free.difference < 3e-7  # measured: 3.0e-8
    assert min(free.gradient_norms.values()) > 1


def run_freely(config: Config, steps: int) -> Free:
    """On a rank."""
    plain = AdversarialStep(config, *plain_engines(config, CPU), PartTimer(CPU))
    zero = AdversarialStep(config, *sharded_engines(config, CPU), PartTimer(CPU))
    for seed, engine in enumerate((plain.generator, plain.discriminator)):
        stir(engine.module, seed)
    for sharded in (zero.generator, zero.discriminator):
        sharded.load_state_tensors(plain_state(plain))
    places = own_places(config.train.batch_size)
    norms = dict.fromkeys(BOTH, 0.0)
    for step in range(1, steps + 1):
        clips = random_clips(config, step, CPU)
        metrics = plain.run(clips, range(len(clips)), step)
        norms = {n: max(norm, metrics[f"gradient_norm/{n}"].item()) for n, norm in norms.items()}
        zero.run(clips[places.start : places.stop], places, step)
    whole = plain_state(plain)
    pieces = [*zero.generator.state_fragments(), *zero.discriminator.state_fragments()]
    difference = max(
        (f.values - whole[f.name].reshape(-1)[f.start : f.start + len(f.values)]).abs().max().item()
        for f in pieces
        if ".optimizer/" not in f.name
    )
    return Free(difference, norms)


def of_three(config: Config) -> Config:
    """With a global batch that three ranks share."""
    return with_values(config, {"train.batch_size": 6 * config.train.accumulation, "data.lanes": 3})


@pytest.mark.soak
def test_three_ranks_take_the_same_step() -> None:
    """Their parts of the flat tensors end within parameters, padding is in play, and their sums
    have an order of their own."""
    names = ("1", "2 accumulated", "3")
    configs = [of_three(CASES[name]) for name in names]
    found = run_on_ranks(measure, (configs, 3), world_size=3)[0]
    for name, steps in zip(names, found, strict=True):
        print(largest(steps))
        assert largest(steps).within(PROMISED), (name, largest(steps))


PARTS = 3
"""Of a soak test, each of which takes several minutes."""


def assert_hundred_steps_equal(
    cases: dict[str, Config],
    ranks: int,
    make: Callable[..., Any],
    limit: Difference = PROMISED,
    **options: Any,
) -> None:
    """Of each case; prints what is the furthest apart."""
    configs = [of_three(config) if ranks == 3 else config for config in cases.values()]
    call = functools.partial(make, **options)
    found = run_on_ranks(call, (configs, 100), world_size=ranks, timeout_s=1400)[0]
    worst = dict(zip(cases, map(largest, found), strict=True))
    for name, difference in worst.items():
        print(f"{ranks} ranks, {name}: {difference}")
    print(f"{ranks} ranks, all: {largest(list(worst.values()))}")
    limits = {name: limit_of(config, ranks, limit) for name, config in cases.items()}
    assert [name for name in worst if not worst[name].within(limits[name])] == [], worst


def limit_of(config: Config, ranks: int, in_float32: Difference) -> Difference:
    """Two ranks sum in one order only, so that not even bf16 makes a difference."""
    return IN_BF16 if ranks == 3 and config.train.precision == "bf16" else in_float32


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_hundred_steps_equal_plain_pytorch(ranks: int, part: int) -> None:
    cases = {name: CASES[name] for name in list(CASES)[part::PARTS]}
    assert_hundred_steps_equal(cases, ranks, measure)


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_hundred_steps_equal_plain_pytorch_on_the_joined_batch(ranks: int) -> None:
    cases = {name: by_plain_steps(CASES[name]) for name in JOINED_CASES}
    assert_hundred_steps_equal(cases, ranks, measure, JOINED, joined=True)


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_hundred_steps_by_adam_equal_plain_pytorch_on_the_joined_batch(ranks: int) -> None:
    cases = joined_cases_of_adam()
    assert_hundred_steps_equal(cases, ranks, measure, JOINED_OF_ADAM, joined=True)


def make_plain_engine(
    name: str, module: nn.Module, optim: NetworkOptimConfig, _: Any, precision: str, __: int
) -> PlainEngine:
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return PlainEngine(name, module, optim, precision)


@pytest.mark.soak
def test_plain_pytorch_in_parts_is_coarser_in_penalties_too() -> None:
    """Why `JOINED` has more room for penalties."""
    in_parts = with_values(by_plain_steps(CASES["0"]), {"train.accumulation": 2})
    call = functools.partial(measure, make_engine=make_plain_engine, joined=True)
    found = largest(run_on_ranks(call, ([in_parts], 100), world_size=1)[0][0])
    print(found)
    assert found.within(JOINED)
    assert found.penalties > PROMISED.penalties


COMBINED_STAGES = [(0, 0), (1, 1), (2, 2), (3, 3), (3, 2), (1, 0), (0, 3)]


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("stages", COMBINED_STAGES)
def test_twenty_steps_of_every_combination(stages: tuple[int, int]) -> None:
    optims = [{"kind": "adam"}, {"kind": "adamw", "weight_decay": 0.1}, MOMENTUM]
    forms = ["random_direction", "gradient_direction", "exact"]
    configs = []
    for optim, form, kind in itertools.product(optims, forms, ("relativistic", "bce", "hinge")):
        if stages[1] == 3 and form == "exact":
            continue
        turn = len(configs)  # the rest takes turns
        parts = 1 + turn % 2
        values: dict[str, Any] = {"loss__kind": kind, "loss__penalty_form": form}
        values["train__accumulation"] = parts
        values |= {
            "train__batch_size": 4 * parts,
            "train__precision": ("fp32", "bf16")[turn // 2 % 2],
        }
        configs.append(case(stages, optim | {"clip_norm": 0.05 * (turn // 4 % 2)}, **values))
    found = run_on_ranks(measure, (configs, 20), world_size=2, timeout_s=1400)[0]
    overall = largest([largest(steps) for steps in found])
    print(f"{len(configs)} combinations: {overall}")
    assert overall.within(PROMISED), overall
