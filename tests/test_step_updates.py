"""An update moves one network alone, within its clip norm, or nothing; reloaded state goes on."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distgan.adversarial_step import AdversarialStep, MicroBatch
from distgan.engine import PlainEngine
from distgan.errors import DivergedError
from tests.tiny_networks import (
    PLACES,
    randomise,
    same,
    tiny_batch,
    tiny_clips,
    tiny_config,
    tiny_step,
    weights_of,
)


def test_each_phase_moves_its_own_network_only() -> None:
    config = tiny_config({"loss.penalty_interval": 1})
    step, clips = tiny_step(config), tiny_clips(config)
    seen: list[str] = []
    both = (step.discriminator, step.generator)

    def watched(engine: Any, other: Any) -> Any:
        update = engine.step

        def run(rate: float) -> Tensor:
            seen.append(engine.name)
            assert all(p.grad is not None for p in engine.module.parameters())
            assert all(p.grad is None for p in other.module.parameters()), "a gradient leaked"
            assert all(p.requires_grad for p in engine.module.parameters())
            before, before_other = weights_of(engine.module), weights_of(other.module)
            norm: Tensor = update(rate)
            assert not same(before, weights_of(engine.module))
            assert same(before_other, weights_of(other.module))
            return norm

        return run

    for engine, other in (both, both[::-1]):
        engine.step = watched(engine, other)  # type: ignore[method-assign]
    step.run(clips, PLACES, 1)
    assert seen == ["discriminator", "generator"]
    for engine in both:
        assert all(p.grad is None and p.requires_grad for p in engine.module.parameters())


def test_the_discriminator_is_frozen_and_bare_in_the_generator_s_phase() -> None:
    config = tiny_config()
    step = tiny_step(config)
    calls: list[tuple[str, bool]] = []
    discriminator = step.discriminator
    bare = discriminator.bare

    def noting(*inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        frozen = not any(p.requires_grad for p in discriminator.module.parameters())
        calls.append(("bare", frozen))
        return bare(*inputs, full_precision=full_precision)

    discriminator.bare = noting  # type: ignore[method-assign]
    loss, _ = step.generator_loss(tiny_batch(config))
    assert calls and all(frozen for _, frozen in calls)
    step.generator.backward(loss)
    assert all(p.grad is None for p in discriminator.module.parameters())
    assert all(p.requires_grad for p in discriminator.module.parameters())


def test_frozen_restores_after_an_error() -> None:
    engine = tiny_step(tiny_config()).discriminator
    with pytest.raises(KeyError), engine.frozen():
        assert not any(p.requires_grad for p in engine.module.parameters())
        raise KeyError
    assert all(p.requires_grad for p in engine.module.parameters())


def linear_engine(clip_norm: float) -> PlainEngine:
    config = tiny_config(
        {"optim.generator.kind": "sgd", "optim.generator.clip_norm": clip_norm}
    ).optim.generator
    layer = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return PlainEngine("generator", layer, config, "fp32")


@pytest.mark.parametrize(
    ("clip_norm", "moved"), [(0.0, 6.0), (2.0, 2.0), (6.5, 6.0), (0.001, 0.001)]
)
def test_clipping_scales_to_the_norm_and_is_off_by_default(clip_norm: float, moved: float) -> None:
    assert tiny_config().optim.generator.clip_norm == 0
    engine = linear_engine(clip_norm)
    engine.backward(engine(torch.tensor([[2.0, 4.0, -4.0]])).sum())
    norm = engine.step(1.0)
    assert norm.item() == pytest.approx(6.0)
    expected = -torch.tensor([[2.0, 4.0, -4.0]]) / 6 * moved
    torch.testing.assert_close(engine.module.weight.detach(), expected)


def test_clipping_takes_all_parameters_together() -> None:
    config = tiny_config({"optim.discriminator.clip_norm": 0.01, "optim.discriminator.lr": 1.0,
                          "optim.discriminator.kind": "sgd",
                          "optim.discriminator.schedule": "constant"})  # fmt: skip
    step = tiny_step(config)
    before = weights_of(step.discriminator.module)
    metrics = step.run(tiny_clips(config), PLACES, 1)
    after = weights_of(step.discriminator.module)
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).norm()
    assert metrics["gradient_norm/discriminator"] > 0.01
    assert moved.item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("broken", ["discriminator", "generator"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_updates_nothing(broken: str, value: float) -> None:
    config = tiny_config()
    step, clips = tiny_step(config), tiny_clips(config)
    step.run(clips, PLACES, 1)
    engine: Any = getattr(step, broken)
    before = {name: tensor.clone() for name, tensor in engine.state_tensors().items()}
    assert any(".optimizer/" in name for name in before)
    loss_of = getattr(step, f"{broken}_loss")

    def spoilt(batch: MicroBatch) -> Any:
        loss, metrics = loss_of(batch)
        return loss * value, metrics

    setattr(step, f"{broken}_loss", spoilt)
    with pytest.raises(DivergedError, match=f"step 2: the gradient norm of the {broken}"):
        step.run(clips, PLACES, 2)
    after = engine.state_tensors()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_scores_that_are_not_finite_are_noticed() -> None:
    for kind in ("relativistic", "bce", "hinge"):
        step = tiny_step(tiny_config({"loss.kind": kind}))
        with torch.no_grad():
            step.discriminator.module.final.logit.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
        with pytest.raises(DivergedError):
            step.run(tiny_clips(step.config), PLACES, 1)


def state_of(step: AdversarialStep) -> dict[str, Tensor]:
    return step.generator.state_tensors() | step.discriminator.state_tensors()


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_engine_state_goes_round(kind: str) -> None:
    """Loaded state, in any memory layout, gives the same next steps, bit by bit."""
    config = tiny_config(
        {"optim.generator.kind": kind, "optim.discriminator.kind": kind,
         "optim.generator.momentum": 0.5}
    )  # fmt: skip
    clips = tiny_clips(config)
    first, second = tiny_step(config), tiny_step(config)
    for number in (1, 2):
        first.run(clips, PLACES, number)
    saved: dict[str, Tensor] = {}
    for engine in (first.generator, first.discriminator):
        saved |= {n: t.clone().contiguous() for n, t in engine.state_tensors().items()}
    for engine in (second.generator, second.discriminator):
        randomise(engine.module)
        engine.load_state_tensors(copy.deepcopy(saved))
    for number in (3, 4):
        for each in (first, second):
            each.run(clips, PLACES, number)
    assert state_of(first).keys() == state_of(second).keys()
    for name, tensor in state_of(first).items():
        assert torch.equal(tensor, state_of(second)[name]), name
