"""Runs without a common state: bit-equal where sums keep their order, else no further apart than
plain PyTorch from itself under another order of sums."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.zero import ddp_engines
from cluster.engine_difference import plain_state
from cluster.engine_pairs import own_places, plain_engines, random_clips, sharded_engines, stir
from cluster.ranks import run_on_ranks
from distgan.adversarial_step import AdversarialStep
from distgan.checkpoint import Fragment
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.engine import Engine
from distgan.timing import PartTimer
from tests.tiny_networks import CPU, tiny_config

STEPS, DRIFT_STEPS = 100, 20
# Gentle enough that rounding doubles rarely: at wild settings every difference ends as large.
VALUES: dict[str, Any] = {
    "loss.penalty_interval": 2,
    "loss.gamma": 0.1,
    "optim.generator.lr": 1e-4,
    "optim.discriminator.lr": 1e-4,
}
DDP = "DDP"
CLIPPED = {"optim.generator.clip_norm": 0.05, "optim.discriminator.clip_norm": 0.05}
ACCUMULATED = {"train.accumulation": 2}
FOR_THREE = {"train.batch_size": 6, "data.lanes": 3}
EXACT = {"loss.penalty_form": "exact"}
MOMENTUM = {
    f"optim.{name}.{key}": value
    for name in ("generator", "discriminator")
    for key, value in {"kind": "sgd", "momentum": 0.9, "lr": 1e-2}.items()
}
DRIFTING: dict[str, tuple[int, dict[str, Any]]] = {
    "0": (0, {}),
    "0 clipped and accumulated": (0, CLIPPED | ACCUMULATED),
    "0, momentum": (0, MOMENTUM),
    "1 clipped": (1, CLIPPED),
    "1 accumulated": (1, ACCUMULATED),
    "2 clipped": (2, CLIPPED),
    "2 accumulated": (2, ACCUMULATED),
    "2, exact, accumulated": (2, EXACT | ACCUMULATED),
    "3": (3, {}),
    "3 clipped and accumulated": (3, CLIPPED | ACCUMULATED),
}
FURTHER: dict[str, tuple[int, dict[str, Any]]] = {
    "0 clipped": (0, CLIPPED),
    "0 accumulated": (0, ACCUMULATED),
    "2, momentum, accumulated": (2, MOMENTUM | ACCUMULATED),
    "3 clipped": (3, CLIPPED),
    "3 accumulated": (3, ACCUMULATED),
    "3, momentum": (3, MOMENTUM),
}


def config_of(stage: int, values: dict[str, Any]) -> Config:
    stages = {f"cluster.{name}.zero_stage": stage for name in ("generator", "discriminator")}
    return tiny_config(VALUES | values | stages)


@dataclass(frozen=True)
class Drift:
    """Sums of squared differences from the weights of plain PyTorch, after the steps.

    Of all weights, as the one that differs most says little: it is a few roundings away.
    """

    ours: float
    """Of this rank's pieces."""
    plain: float
    """Of plain PyTorch that takes the batch in other parts, all weights."""


@dataclass(frozen=True)
class Found:
    """What all tests here look at."""

    losses: dict[str, list[float]]
    """Of each step, on this rank, by engine."""
    same_weights: dict[str, bool]
    """Whether this rank's pieces equal those of DDP in every bit."""
    drift: dict[str, Drift]


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def found() -> list[Found]:
    return run_on_ranks(compare_all, (), world_size=2)


def compare_all() -> Found:
    """On a rank."""
    config = config_of(0, {})
    ddp, losses = run(config, ddp_engines(config, CPU, contiguous=True), STEPS, own=True)
    reference = {f.name: f.values for f in fragments(ddp)}
    all_losses, same = {DDP: losses}, {}
    for stage in (1, 2):
        config = config_of(stage, {})
        zero, all_losses[str(stage)] = run(config, sharded_engines(config, CPU), STEPS, own=True)
        same[str(stage)] = all(torch.equal(f.values, part(reference, f)) for f in fragments(zero))
    return Found(all_losses, same, {name: drift(*case) for name, case in DRIFTING.items()})


def drift(stage: int, values: dict[str, Any]) -> Drift:
    config = config_of(stage, values)
    parts = torch.distributed.get_world_size() * config.train.accumulation
    alone = with_values(config_of(0, values), {"train.accumulation": 1})
    whole = {name: tensor.reshape(-1) for name, tensor in plain_after(alone).items()}
    other = plain_after(with_values(alone, {"train.accumulation": parts}))
    zero, _ = run(config, sharded_engines(config, CPU), DRIFT_STEPS, own=True)
    weights = [f for f in fragments(zero) if ".optimizer/" not in f.name]
    return Drift(
        ours=sum(squares(f.values - part(whole, f)) for f in weights),
        plain=sum(
            squares(tensor.reshape(-1) - whole[name])
            for name, tensor in other.items()
            if ".optimizer/" not in name
        ),
    )


def squares(difference: Tensor) -> float:
    return difference.double().square().sum().item()


def plain_after(config: Config) -> dict[str, Tensor]:
    """The state of plain PyTorch that takes the batch in the configured number of parts."""
    key = config.model_dump_json()
    if key not in _plain_states:
        adversarial, _ = run(config, plain_engines(config, CPU), DRIFT_STEPS, own=False)
        _plain_states[key] = plain_state(adversarial)
    return _plain_states[key]


_plain_states: dict[str, dict[str, Tensor]] = {}
"""By configuration: many stages are held against the same one."""


def run(
    config: Config, engines: tuple[Engine, Engine], steps: int, *, own: bool
) -> tuple[AdversarialStep, list[float]]:
    """Steps on this rank's clips or on the whole batch; and the losses of G."""
    adversarial = AdversarialStep(config, *engines, PartTimer(CPU))
    start = AdversarialStep(config, *plain_engines(config, CPU), PartTimer(CPU))
    for seed, engine in enumerate((start.generator, start.discriminator)):
        stir(engine.module, seed)
    for engine in engines:
        engine.load_state_tensors(plain_state(start))
    places = own_places(config.train.batch_size) if own else range(config.train.batch_size)
    losses = []
    for step in range(1, steps + 1):
        clips = random_clips(config, step, CPU)[places.start : places.stop]
        losses.append(adversarial.run(clips, places, step)["loss/generator"].item())
    return adversarial, losses


def fragments(adversarial: AdversarialStep) -> list[Fragment]:
    engines = (adversarial.generator, adversarial.discriminator)
    return [fragment for engine in engines for fragment in engine.state_fragments()]


def part(whole: dict[str, Tensor], fragment: Fragment) -> Tensor:
    start, values = fragment.start, fragment.values
    return whole[fragment.name].reshape(-1)[start : start + values.numel()].reshape(values.shape)


@pytest.mark.parametrize("stage", ["1", "2"])
def test_stages_1_and_2_equal_ddp_to_the_bit_over_a_hundred_steps(
    stage: str, found: list[Found]
) -> None:
    for rank in found:
        assert rank.losses[stage] == rank.losses[DDP]
        assert rank.same_weights[stage]
        assert len(set(rank.losses[DDP])) == STEPS, "the steps do differ"


@pytest.mark.parametrize("name", DRIFTING)
def test_the_rest_drifts_no_further_than_another_order_of_sums(
    name: str, found: list[Found]
) -> None:
    assert_drifts_no_further([rank.drift[name] for rank in found])


@pytest.mark.soak
@pytest.mark.parametrize("name", FURTHER)
def test_what_takes_longer_drifts_no_further_either(name: str) -> None:
    assert_drifts_no_further(run_on_ranks(drift, FURTHER[name], world_size=2))


@pytest.mark.soak
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_three_ranks_drift_no_further_either(stage: int) -> None:
    assert_drifts_no_further(run_on_ranks(drift, (stage, FOR_THREE), world_size=3))


def assert_drifts_no_further(drifts: list[Drift]) -> None:
    """Than twice as far as plain PyTorch. Measured: 0.95 to 1.11 times as far, on three ranks too:
    8e-7 to 1.3e-6."""
    ours, plain = math.sqrt(sum(rank.ours for rank in drifts)), math.sqrt(drifts[0].plain)
    print(f"drift: {ours:.3g} against {plain:.3g}, {ours / plain:.2f} times as far")
    assert plain > 0
    assert ours <= 2 * plain, (ours, plain)
