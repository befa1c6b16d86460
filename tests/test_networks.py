"""The networks: shapes, no dead parameter, clips apart from each other, known frames kept."""

from typing import Any

import pytest
import torch
from torch import Tensor

from distgan.adversarial_step import to_float
from distgan.data.conditioning import condition
from distgan.discriminator import Discriminator
from distgan.generator import Generator
from distgan.networks import build_discriminator, build_generator, count_parameters
from tests.tiny_networks import CPU, PLACES, randomise, tiny_clips, tiny_config, tiny_step

CONFIGS: list[dict[str, Any]] = [
    {},
    {"model.patch": 1, "model.attention.resolutions": [16]},
    {"model.patch": 4, "model.attention.resolutions": [4, 2]},
    {"model.temporal_levels": 0},
    {
        "model.temporal_levels": 2,
        "model.generator.channels": [4, 6, 8],
        "model.discriminator.channels": [4, 8, 10, 12],
        "model.attention.resolutions": [2, 1],
    },
    {"model.generator.blocks": 2, "model.discriminator.blocks": 3},
    {"model.attention.kind": "none"},
    {"model.attention.head_dim": 0, "model.attention.heads": 4},
    {"model.attention.kind": "none", "model.attention.mlp_width": 5},
    {"model.attention.kind": "sparse", "model.attention.mlp_width": 5, "data.clip_frames": 8},
    {"model.attention.kind": "factorised", "model.attention.placement": ["encoder", "decoder"]},
    {"data.resolution": 24, "data.clip_frames": 6, "model.attention.resolutions": [6]},
    {"model.temporal_levels": 0, "data.clip_frames": 1, "conditioning.context_frames": 1},
]


def inputs(config: Any, count: int = 2) -> tuple[Tensor, Tensor | None, Tensor | None]:
    latent = torch.randn(
        count, config.model.generator.latent_dim, generator=torch.Generator().manual_seed(0)
    )
    return latent, *condition(to_float(tiny_clips(config, count=count)), config.conditioning)


@pytest.mark.parametrize("values", CONFIGS, ids=str)
@pytest.mark.parametrize("task", ["none", "prediction"])
def test_shapes(values: dict[str, Any], task: str) -> None:
    if task == "prediction" and values.get("data.clip_frames") == 1:
        pytest.skip("one frame leaves nothing to predict")
    config = tiny_config(values | {"conditioning.task": task})
    generator, discriminator = build_generator(config, CPU), build_discriminator(config, CPU)
    video = generator(*inputs(config))
    size, frames = config.data.resolution, config.data.clip_frames
    assert video.shape == (2, 3, frames, size, size) and video.dtype == torch.float32
    scores = discriminator(video)
    assert scores.shape == (2,) and scores.dtype == torch.float32
    assert video.isfinite().all() and scores.isfinite().all()
    assert 0.05 < video[:, :, -1].std() < 3, "pixels start far from those of videos"
    with torch.autocast("cpu", torch.bfloat16):
        assert generator(*inputs(config)).dtype == discriminator(video).dtype == torch.float32


@pytest.mark.parametrize("size", [224, 96, 40])
def test_sizes_that_are_no_powers_of_two(size: int) -> None:
    config = tiny_config({"model.attention.kind": "none"})
    with torch.device("meta"):
        video = Generator(config.model, size, 4, False)(torch.empty(1, 8))
    assert video.shape == (1, 3, 4, size, size)


@pytest.mark.parametrize("task", ["none", "prediction"])
@pytest.mark.parametrize(
    ("kind", "attention"),
    [("relativistic", kind) for kind in ("additive", "factorised", "sparse")]
    + [(kind, "self") for kind in ("relativistic", "bce", "hinge")],
)
def test_no_parameter_is_dead(task: str, kind: str, attention: str) -> None:
    """After two steps (branches leave zero), each parameter of both gets a gradient that counts."""
    config = tiny_config(
        {
            "conditioning.task": task,
            "loss.kind": kind,
            "loss.penalty_interval": 1,
            "model.generator.blocks": 2,
            "model.attention.kind": attention,
            "model.attention.mlp_width": 4,
            "model.attention.density": 0.5,
        }
    )
    step = tiny_step(config)
    clips = tiny_clips(config)
    for number in (1, 2, 3):
        step.run(clips, PLACES, number)
    seen: dict[str, float] = {}
    for engine in (step.discriminator, step.generator):

        def note(learning_rate: float, engine: Any = engine) -> Tensor:
            for name, parameter in engine.module.named_parameters():
                assert parameter.grad is not None, f"{engine.name}/{name} has no gradient"
                seen[f"{engine.name}/{name}"] = parameter.grad.norm().item()
            engine.optimizer.zero_grad()
            return torch.tensor(0.0)

        engine.step = note  # type: ignore[method-assign]
    step.run(clips, PLACES, 4)
    assert len(seen) > 40
    largest = max(seen.values())
    assert not {name: norm for name, norm in seen.items() if not norm > 1e-7 * largest}


def test_prediction_leaves_known_frames_as_they_are() -> None:
    config = tiny_config({"conditioning.task": "prediction", "conditioning.context_frames": 3})
    generator = build_generator(config, CPU)
    randomise(generator)
    clips = to_float(tiny_clips(config))
    given, known = condition(clips, config.conditioning)
    assert given is not None and known is not None
    latent = torch.randn(4, 8)
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            video = generator(latent, given, known)
        assert torch.equal(video[:, :, :3], clips[:, :, :3])
        assert (video[:, :, 3] - clips[:, :, 3]).abs().mean() > 0.1
    # What is to be predicted is not given away.
    assert not given[:, :, 3].any() and not known[:, :, 3].any()
    assert known[:, :, :3].eq(1).all() and known.shape == (4, 1, 4, 16, 16)


def test_the_generator_listens_to_noise_and_to_the_given_video() -> None:
    config = tiny_config({"conditioning.task": "prediction"})
    generator = build_generator(config, CPU)
    randomise(generator)
    latent, given, known = inputs(config, 4)
    assert given is not None and known is not None
    first = generator(latent, given, known)[:, :, 2:]
    assert (generator(latent.flip(0), given, known)[:, :, 2:] - first).abs().mean() > 1e-3
    assert (generator(latent, given.flip(0), known)[:, :, 2:] - first).abs().mean() > 1e-3
    # The last given frame reaches the first new one.
    other = given.clone()
    other[:, :, 1] *= -1
    assert (generator(latent, other, known)[:, :, 2] - first[:, :, 0]).abs().mean() > 1e-3


def test_noise_counts_by_its_direction_from_the_start() -> None:
    generator = build_generator(tiny_config(), CPU)
    latent = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    video = generator(latent)
    assert (video[0] - video[1]).abs().mean() > 0.05
    torch.testing.assert_close(generator(3 * latent), video, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", ["none", "prediction"])
def test_clips_do_not_depend_on_the_others_of_their_batch(task: str) -> None:
    config = tiny_config({"conditioning.task": task, "model.attention.resolutions": [8, 4]})
    generator, discriminator = build_generator(config, CPU), build_discriminator(config, CPU)
    for seed, network in enumerate((generator, discriminator)):
        randomise(network, seed)
    latent, given, known = inputs(config, 4)
    video = generator(latent, given, known)
    scores = discriminator(video)
    assert scores.std() > 0
    for index in (0, 2):
        one = slice(index, index + 1)
        alone = generator(
            latent[one],
            None if given is None else given[one],
            None if known is None else known[one],
        )
        torch.testing.assert_close(alone, video[one], rtol=0, atol=1e-5)
        torch.testing.assert_close(discriminator(video[one]), scores[one], rtol=0, atol=1e-5)


def test_the_discriminator_sees_the_order_of_frames() -> None:
    discriminator = build_discriminator(tiny_config(), CPU)
    randomise(discriminator)
    clips = to_float(tiny_clips(tiny_config()))
    shuffled = clips[:, :, [2, 0, 3, 1]]
    scores = discriminator(clips)
    assert (scores - discriminator(shuffled)).abs().mean() > 0.1 * scores.std()


def test_the_discriminator_ends_without_a_bias() -> None:
    discriminator = build_discriminator(tiny_config(), CPU)
    last = [n for n, _ in discriminator.named_parameters() if "logit" in n or "head" in n]
    assert last == ["levels.1.head.weight", "final.logit.weight"]
    # So a constant can't be added to all scores: zero weights in the heads give zero scores.
    for name, parameter in discriminator.named_parameters():
        if name in last:
            parameter.data.zero_()
    assert not discriminator(to_float(tiny_clips(tiny_config()))).any()


def test_start_weights_are_the_same_whatever_was_built_before() -> None:
    config = tiny_config()
    first = dict(build_generator(config, CPU).named_parameters())
    build_discriminator(config, CPU)
    torch.manual_seed(5)
    for name, parameter in build_generator(config, CPU).named_parameters():
        assert torch.equal(parameter, first[name])
    other = dict(build_generator(tiny_config({"seed": 1}), CPU).named_parameters())
    assert not torch.equal(first["paint.weight"], other["paint.weight"])


def test_a_coarser_change_leaves_other_weights_alone() -> None:
    """Weights follow from their names: switching attention off keeps all the others."""
    with_attention = dict(build_discriminator(tiny_config(), CPU).named_parameters())
    without = build_discriminator(tiny_config({"model.attention.kind": "none"}), CPU)
    for name, parameter in without.named_parameters():
        assert torch.equal(parameter, with_attention[name])


def test_parameters_are_counted() -> None:
    assert count_parameters(torch.nn.Linear(3, 4)) == 16
    config = tiny_config()
    with torch.device("meta"):
        network = Discriminator(config.model, 16, 4)
    assert count_parameters(network) == count_parameters(build_discriminator(config, CPU))
