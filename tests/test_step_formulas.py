"""One G+D step computes what its formulas say: losses, penalties and updates, in each precision."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distgan.adversarial_step import to_float
from distgan.config import Config
from distgan.losses import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES
from distgan.optimizers import decay
from distgan.sampling import to_uint8
from distgan.seeding import normal_per_clip
from tests.tiny_networks import (
    CPU,
    PLACES,
    same,
    tiny_batch,
    tiny_clips,
    tiny_config,
    tiny_step,
    weights_of,
)


def test_pixels_survive_the_way_to_float_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    numbers = to_float(pixels)
    assert torch.equal(to_uint8(numbers), pixels)
    assert numbers.min() == -1 and abs(numbers.max().item() - 1) < 1e-6


def draws(config: Config, shape: tuple[int, ...], purpose: str, step: int) -> Tensor:
    """One draw a clip of a whole batch."""
    return normal_per_clip(
        shape, seed=config.seed, purpose=purpose, step=step, places=PLACES, device=CPU
    )


def plain_steps(config: Config, clips: Tensor, number: int) -> tuple[nn.Module, nn.Module]:
    """The same by hand: relativistic loss, R1 and R2 by random directions, Adam."""
    start = tiny_step(config)
    generator, discriminator = start.generator.module, start.discriminator.module
    rates = config.optim
    adam = {
        module: torch.optim.Adam(module.parameters(), lr=optim.lr, betas=(0.0, 0.99))
        for module, optim in (
            (generator, rates.generator),
            (discriminator, rates.discriminator),
        )
    }
    real = clips.float() * (1 / 127.5) - 1
    for step in range(1, number + 1):
        progress = step / config.train.max_steps
        cosine = (1 + torch.cos(torch.tensor(torch.pi * progress, dtype=torch.float64))) / 2
        for module in (generator, discriminator):
            for group in adam[module].param_groups:
                group["lr"] = 2e-4 * (0.25 + 0.75 * cosine.item())
        fake = generator(draws(config, (8,), "latent/discriminator", step)).detach()
        videos = [real, fake]
        if step % 2 == 0:
            for name, video in (("r1", real), ("r2", fake)):
                noise = draws(config, tuple(video.shape[1:]), f"penalty/{name}", step)
                videos.append(video + 0.05 * noise)
        scores = discriminator(torch.cat(videos)).split(4)
        loss = torch.nn.functional.softplus(scores[1] - scores[0])
        if step % 2 == 0:
            r1 = (scores[0] - scores[2]).square() / 0.05**2
            r2 = (scores[1] - scores[3]).square() / 0.05**2
            gamma = 1.0 * (0.1 + 0.9 * cosine.item())
            loss = loss + 2 * gamma / 2 * (r1 + r2)
        adam[discriminator].zero_grad()
        loss.mean().backward()
        adam[discriminator].step()
        fake = generator(draws(config, (8,), "latent/generator", step))
        gap = discriminator(real).detach() - discriminator(fake)
        adam[generator].zero_grad()
        torch.nn.functional.softplus(gap).mean().backward()
        adam[generator].step()
    return generator, discriminator


def test_four_steps_equal_plain_pytorch() -> None:
    config = tiny_config({"loss.penalty_interval": 2, "loss.penalty_step": 0.05, "loss.gamma": 1.0})
    clips = tiny_clips(config)
    step = tiny_step(config)
    start = weights_of(step.generator.module)
    for number in (1, 2, 3, 4):
        step.run(clips, PLACES, number)
    generator, discriminator = plain_steps(config, clips, 4)
    assert not same(start, weights_of(generator))
    for engine, plain in ((step.generator, generator), (step.discriminator, discriminator)):
        for name, parameter in engine.module.named_parameters():
            other = plain.get_parameter(name)
            torch.testing.assert_close(parameter, other, rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_the_known_losses_are_what_is_descended(network: str) -> None:
    """A small step along the gradient lowers the loss that the formulas give."""
    config = tiny_config({"loss.penalty": "none"})
    step = tiny_step(config)
    batch = tiny_batch(config)
    engine: Any = getattr(step, network)
    loss, _ = getattr(step, f"{network}_loss")(batch)
    latents = draws(config, (8,), f"latent/{network}", 1)
    fake = step.discriminator.bare(step.generator.bare(latents))
    real = step.discriminator.bare(batch.clips_BCTHW)
    table = GENERATOR_LOSSES if network == "generator" else DISCRIMINATOR_LOSSES
    torch.testing.assert_close(loss, table["relativistic"](real, fake).mean())
    engine.backward(loss)
    engine.step(1e-5)
    assert getattr(step, f"{network}_loss")(batch)[0] < loss


@pytest.mark.parametrize("interval", [1, 3])
def test_the_penalty_comes_at_its_interval_with_its_weight(interval: int) -> None:
    config = tiny_config({"loss.penalty_interval": interval, "loss.gamma": 0.5})
    step = tiny_step(config)
    for number in range(1, 8):
        loss, metrics = step.discriminator_loss(tiny_batch(config, number))
        due = number % interval == 0
        assert {"penalty/r1", "penalty/r2"} & metrics.keys() == (
            {"penalty/r1", "penalty/r2"} if due else set()
        )
        extra = (loss - metrics["loss/discriminator"]).item()
        if due:
            gamma = 0.5 * decay("cosine", 0.1, number, 100)
            total = (metrics["penalty/r1"] + metrics["penalty/r2"]).item()
            assert extra == pytest.approx(interval * gamma / 2 * total, rel=1e-4)
            assert total > 0
        else:
            assert extra == 0


@pytest.mark.parametrize("form", ["random_direction", "gradient_direction", "exact"])
def test_r1_looks_at_real_and_r2_at_generated_clips(form: str) -> None:
    def penalties(penalty: str) -> dict[str, Tensor]:
        config = tiny_config(
            {"loss.penalty": penalty, "loss.penalty_form": form, "loss.penalty_interval": 1}
        )
        step = tiny_step(config)
        _, metrics = step.discriminator_loss(tiny_batch(config))
        return {name: value for name, value in metrics.items() if name.startswith("penalty/")}

    both, first, second = penalties("r1+r2"), penalties("r1"), penalties("r2")
    assert first.keys() == {"penalty/r1"} and second.keys() == {"penalty/r2"}
    torch.testing.assert_close(both, first | second, rtol=1e-3, atol=1e-5)
    assert both["penalty/r1"] != both["penalty/r2"]
    assert penalties("none") == {}


def test_the_sign_statistic_is_the_share_of_real_clips_above_their_partner() -> None:
    config = tiny_config()
    step = tiny_step(config)
    scores = torch.tensor([1.0, 0.0, 3.0, -1.0, 0.5, 1.0, 2.0, -1.0])
    step.discriminator.bare = lambda *_, **__: scores  # type: ignore[method-assign]
    _, metrics = step.discriminator_loss(tiny_batch(config))
    assert metrics["score/sign"].item() == 0.5
    assert metrics["score/real"].item() == 0.75 and metrics["score/fake"].item() == 0.625


@pytest.mark.parametrize("kind", ["relativistic", "bce", "hinge"])
@pytest.mark.parametrize("form", ["random_direction", "gradient_direction", "exact"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_combination_runs(kind: str, form: str, optimizer: str) -> None:
    config = tiny_config(
        {
            "loss.kind": kind,
            "loss.penalty_form": form,
            "loss.penalty_interval": 2,
            "optim.generator.kind": optimizer,
            "optim.discriminator.kind": optimizer,
            "train.augment.probability": 0.5,
        }
    )
    step = tiny_step(config)
    for number in (1, 2):
        metrics = step.run(tiny_clips(config), PLACES, number)
        assert all(value.isfinite().all() and not value.requires_grad for value in metrics.values())
    assert {"penalty/r1", "penalty/r2", "loss/generator", "score/sign"} <= metrics.keys()


def test_bf16_runs_stays_close_and_keeps_float32_weights() -> None:
    results = []
    for precision in ("fp32", "bf16"):
        config = tiny_config({"train.precision": precision, "loss.penalty_interval": 2})
        step = tiny_step(config)
        metrics = [step.run(tiny_clips(config), PLACES, number) for number in (1, 2)]
        assert all(p.dtype == torch.float32 for p in step.generator.module.parameters())
        results.append([m["loss/discriminator"].item() for m in metrics])
        results[-1] += [m["loss/generator"].item() for m in metrics]
    assert results[0] == pytest.approx(results[1], rel=0.03)
    assert results[0] != results[1]


def test_the_penalty_s_difference_is_taken_in_float32() -> None:
    values = []
    for precision in ("fp32", "bf16"):
        config = tiny_config(
            {"train.precision": precision, "loss.penalty": "r1", "loss.penalty_interval": 1,
             "loss.penalty_step": 1e-3}
        )  # fmt: skip
        _, metrics = tiny_step(config).discriminator_loss(tiny_batch(config))
        values.append(metrics["penalty/r1"].item())
    assert values[0] == values[1]
