"""A step's gradients do not depend on how its batch is split: draws go with places and steps."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from distgan.adversarial_step import MicroBatch, to_float
from distgan.config import Config
from tests.tiny_networks import (
    PLACES,
    in_float64,
    randomise,
    tiny_clips,
    tiny_config,
    tiny_step,
    weights_of,
)


def gradients(
    config: Config,
    clips: Tensor,
    splits: Sequence[Sequence[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> list[Tensor]:
    """Of D's and G's loss in float64, summed over micro-batches given by their places."""
    with monkeypatch.context() as patched:
        step = tiny_step(config)
        in_float64(step, patched)
        for seed, engine in enumerate((step.generator, step.discriminator)):
            randomise(engine.module, seed, 0.03)
        collected = []
        for engine, loss_of in (
            (step.discriminator, step.discriminator_loss),
            (step.generator, step.generator_loss),
        ):
            for places in splits:
                batch = MicroBatch(clips_BCTHW=to_float(clips[list(places)]), places=places, step=4)
                engine.backward(loss_of(batch)[0] * len(places) / len(clips))
            collected += [p.grad.clone() for p in engine.module.parameters()]  # type: ignore[union-attr]
        return collected


@pytest.mark.parametrize("form", ["random_direction", "gradient_direction", "exact"])
@pytest.mark.parametrize("task", ["none", "prediction"])
def test_splitting_the_batch_changes_no_gradient(
    form: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        {
            "loss.penalty_form": form,
            "conditioning.task": task,
            "train.augment.probability": 0.7,
            "train.augment.instance_noise": 0.1,
        }
    )
    clips = tiny_clips(config)
    whole = gradients(config, clips, [PLACES], monkeypatch)
    assert all(gradient.dtype == torch.float64 for gradient in whole)
    for splits in ([[0, 1], [2, 3]], [[0], [1], [2], [3]], [[3, 1], [0], [2]]):
        parts = gradients(config, clips, splits, monkeypatch)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    moved = gradients(config, clips, [[1, 0, 2, 3]], monkeypatch)
    assert torch.allclose(moved[0], whole[0])  # clips keep their draws when places travel along


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_nothing_but_the_order_of_sums(
    accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for parts in (1, accumulation):
        with monkeypatch.context() as patched:
            # Steps without momentum or division show the gradients themselves.
            values = {f"optim.{n}.kind": "sgd" for n in ("generator", "discriminator")}
            config = tiny_config(values | {"train.accumulation": parts, "loss.penalty_interval": 2})
            step = tiny_step(config)
            in_float64(step, patched)
            metrics = [step.run(tiny_clips(config), PLACES, number) for number in (1, 2, 3)]
            both = (step.generator, step.discriminator)
            results.append(
                [w for engine in both for w in weights_of(engine.module)]
                + [m[name].double() for m in metrics for name in sorted(m)]
            )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_draws_follow_from_place_and_step() -> None:
    config = tiny_config({"train.augment.instance_noise": 0.1, "loss.penalty_interval": 1})
    step = tiny_step(config)
    clips = to_float(tiny_clips(config))

    def losses(places: Sequence[int], number: int) -> list[float]:
        picked = [place % 4 for place in places]
        batch = MicroBatch(clips_BCTHW=clips[picked], places=places, step=number)
        return [step.discriminator_loss(batch)[0].item(), step.generator_loss(batch)[0].item()]

    assert losses([0, 1], 1) == losses([0, 1], 1)
    for places, number in (([4, 5], 1), ([0, 1], 2)):
        for before, after in zip(losses([0, 1], 1), losses(places, number), strict=True):
            assert before != after
