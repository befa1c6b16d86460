"""Tiny networks and batches, shared by the tests of the core."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distgan.adversarial_step import AdversarialStep, MicroBatch, to_float
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.engine import PlainEngine
from distgan.networks import build_discriminator, build_generator
from distgan.seeding import normal_per_clip
from distgan.timing import PartTimer

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "data.resolution": 16,
    "data.clip_frames": 4,
    "data.lanes": 2,
    "data.num_workers": 0,
    "model.generator.channels": [8, 16],
    "model.generator.latent_dim": 8,
    "model.generator.style_dim": 12,
    "model.discriminator.channels": [8, 16],
    "model.attention.heads": 2,
    "model.attention.head_dim": 4,
    "model.attention.resolutions": [4],
    "conditioning.context_frames": 2,
    "train.batch_size": 4,
    "train.max_steps": 100,
    "train.precision": "fp32",
    "train.device": "cpu",
}
PLACES = range(TINY["train.batch_size"])
"""The places of a whole batch of clips."""


def tiny_config(values: dict[str, Any] | None = None) -> Config:
    """16 pixels, 4 frames, two levels of 8 and 16 channels, a batch of 4."""
    return with_values(Config(), TINY | (values or {}))


def tiny_step(config: Config) -> AdversarialStep:
    """Both networks at their start weights, in plain engines."""
    precision = config.train.precision
    return AdversarialStep(
        config,
        PlainEngine("generator", build_generator(config, CPU), config.optim.generator, precision),
        PlainEngine(
            "discriminator", build_discriminator(config, CPU), config.optim.discriminator, precision
        ),
        PartTimer(CPU),
    )


def tiny_clips(config: Config, seed: int = 0, count: int = 0) -> Tensor:
    """Random uint8 clips (B, 3, T, H, W)."""
    size, frames = config.data.resolution, config.data.clip_frames
    return torch.randint(
        0,
        256,
        (count or config.train.batch_size, 3, frames, size, size),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.uint8,
    )


def tiny_batch(config: Config, step: int = 1) -> MicroBatch:
    """The whole batch of `tiny_clips` as one micro-batch."""
    return MicroBatch(clips_BCTHW=to_float(tiny_clips(config)), places=PLACES, step=step)


def weights_of(module: nn.Module) -> list[Tensor]:
    """Copies, which later updates leave alone."""
    return [p.detach().clone() for p in module.parameters()]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Equal in every bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def in_float64(step: AdversarialStep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns both networks and everything that they compute to float64 for one test."""
    keep_width(monkeypatch)

    def normal(shape: tuple[int, ...], **address: Any) -> Tensor:
        return normal_per_clip(shape, **address).double()

    monkeypatch.setattr("distgan.adversarial_step.normal_per_clip", normal)
    step.generator.module.double()
    step.discriminator.module.double()


def keep_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tensor.float()` makes float64 of integers and leaves other tensors alone: the networks use
    it to leave bf16, and would leave float64 too."""

    def float64(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.double()

    monkeypatch.setattr(torch.Tensor, "float", float64)


def randomise(module: nn.Module, seed: int = 0, deviation: float = 0.1) -> None:
    """Moves every parameter off its start value, so that no branch is switched off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += deviation * torch.randn(parameter.shape, generator=generator)
