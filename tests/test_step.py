"""One G+D step: equal to a plain PyTorch one, unmoved by splitting, and clean between phases."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distgan.adversarial_step import AdversarialStep, MicroBatch, to_float
from distgan.config import Config
from distgan.engine import PlainEngine
from distgan.errors import DivergedError
from distgan.losses import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES
from distgan.optimizers import decay
from distgan.sampling import to_uint8
from distgan.seeding import normal_per_clip
from tests.tiny_networks import CPU, in_float64, randomise, tiny_clips, tiny_config, tiny_step

PLACES = range(4)


def weights_of(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def latents(config: Config, phase: str, step: int) -> Tensor:
    return normal_per_clip(
        (8,), seed=config.seed, purpose=f"latent/{phase}", step=step, places=PLACES, device=CPU
    )


def test_pixels_survive_the_way_to_float_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    numbers = to_float(pixels)
    assert torch.equal(to_uint8(numbers), pixels)
    assert numbers.min() == -1 and abs(numbers.max().item() - 1) < 1e-6


def plain_steps(config: Config, clips: Tensor, number: int) -> tuple[nn.Module, nn.Module]:
    """The same by hand: relativistic loss, R1 and R2 by random directions, Adam."""
    start = tiny_step(config)
    generator, discriminator = start.generator.module, start.discriminator.module
    rates = config.optim
    adam = {
        module: torch.optim.Adam(module.parameters(), lr=optim.lr, betas=(0.0, 0.99), fused=True)
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
        fake = generator(latents(config, "discriminator", step)).detach()
        videos = [real, fake]
        if step % 2 == 0:
            for name, video in (("r1", real), ("r2", fake)):
                noise = normal_per_clip(
                    tuple(video.shape[1:]),
                    seed=config.seed,
                    purpose=f"penalty/{name}",
                    step=step,
                    places=PLACES,
                    device=CPU,
                )
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
        fake = generator(latents(config, "generator", step))
        gap = discriminator(real).detach() - discriminator(fake)
        adam[generator].zero_grad()
        torch.nn.functional.softplus(gap).mean().backward()
        adam[generator].step()
    return generator, discriminator


def test_four_steps_equal_plain_pytorch() -> None:
    config = tiny_config({"loss.penalty_interval": 2, "loss.gamma": 1.0})
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
    batch = MicroBatch(clips_BCTHW=to_float(tiny_clips(config)), places=PLACES, step=1)
    loss, _ = step.generator_loss(batch)
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


@pytest.mark.parametrize("interval", [1, 3])
def test_the_penalty_comes_at_its_interval_with_its_weight(interval: int) -> None:
    config = tiny_config({"loss.penalty_interval": interval, "loss.gamma": 0.5})
    step = tiny_step(config)
    clips = to_float(tiny_clips(config))
    for number in range(1, 8):
        batch = MicroBatch(clips_BCTHW=clips, places=PLACES, step=number)
        loss, metrics = step.discriminator_loss(batch)
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
        batch = MicroBatch(clips_BCTHW=to_float(tiny_clips(config)), places=PLACES, step=1)
        _, metrics = step.discriminator_loss(batch)
        return {name: value for name, value in metrics.items() if name.startswith("penalty/")}

    both, first, second = penalties("r1+r2"), penalties("r1"), penalties("r2")
    assert first.keys() == {"penalty/r1"} and second.keys() == {"penalty/r2"}
    torch.testing.assert_close(both, first | second, rtol=1e-3, atol=1e-5)
    assert both["penalty/r1"] != both["penalty/r2"]
    assert penalties("none") == {}


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


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_the_known_losses_are_what_is_descended(network: str) -> None:
    """A small step along the gradient lowers the loss that the formulas give."""
    config = tiny_config({"loss.penalty": "none"})
    step = tiny_step(config)
    batch = MicroBatch(clips_BCTHW=to_float(tiny_clips(config)), places=PLACES, step=1)
    engine: Any = getattr(step, network)
    loss, _ = getattr(step, f"{network}_loss")(batch)
    phase = latents(config, network, 1)
    fake = step.discriminator.bare(step.generator.bare(phase))
    real = step.discriminator.bare(batch.clips_BCTHW)
    table = GENERATOR_LOSSES if network == "generator" else DISCRIMINATOR_LOSSES
    torch.testing.assert_close(loss, table["relativistic"](real, fake).mean())
    engine.backward(loss)
    engine.step(1e-5)
    assert getattr(step, f"{network}_loss")(batch)[0] < loss


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
        batch = MicroBatch(clips_BCTHW=to_float(tiny_clips(config)), places=PLACES, step=1)
        values.append(tiny_step(config).discriminator_loss(batch)[1]["penalty/r1"].item())
    assert values[0] == values[1]


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


def state_of(step: AdversarialStep) -> dict[str, Tensor]:
    return step.generator.state_tensors() | step.discriminator.state_tensors()


def test_the_sign_statistic_is_the_share_of_real_clips_above_their_partner() -> None:
    config = tiny_config()
    step = tiny_step(config)
    scores = torch.tensor([1.0, 0.0, 3.0, -1.0, 0.5, 1.0, 2.0, -1.0])
    step.discriminator.bare = lambda *_, **__: scores  # type: ignore[method-assign]
    batch = MicroBatch(clips_BCTHW=to_float(tiny_clips(config)), places=PLACES, step=1)
    _, metrics = step.discriminator_loss(batch)
    assert metrics["score/sign"].item() == 0.5
    assert metrics["score/real"].item() == 0.75 and metrics["score/fake"].item() == 0.625
