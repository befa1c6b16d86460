"""Builds the two networks from a configuration, with weights that follow from the seed alone."""

from typing import TypeVar

import torch
from torch import nn

from distgan.blocks import initialise
from distgan.config import Config
from distgan.data.conditioning import reads_video
from distgan.discriminator import Discriminator
from distgan.generator import Generator

M = TypeVar("M", bound=nn.Module)


def build_generator(config: Config, device: torch.device) -> Generator:
    """The generator with its start weights."""
    return _materialise(meta_generator(config), config, "generator", device)


def build_discriminator(config: Config, device: torch.device) -> Discriminator:
    """The discriminator with its start weights."""
    return _materialise(meta_discriminator(config), config, "discriminator", device)


def generator_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of each of the generator's parameters; takes no memory for them."""
    return {name: tuple(p.shape) for name, p in meta_generator(config).named_parameters()}


def meta_generator(config: Config) -> Generator:
    """The generator's shapes, without memory for its weights."""
    with torch.device("meta"):
        return Generator(
            config.model,
            config.data.resolution,
            config.data.clip_frames,
            reads_video(config.conditioning),
        )


def meta_discriminator(config: Config) -> Discriminator:
    """The discriminator's shapes, without memory for its weights."""
    with torch.device("meta"):
        return Discriminator(config.model, config.data.resolution, config.data.clip_frames)


def _materialise(module: M, config: Config, name: str, device: torch.device) -> M:
    """Start weights are drawn on the CPU, so they are the same on every device."""
    module.to_empty(device="cpu")
    initialise(module, config.seed, f"weights/{name}")
    module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def count_parameters(module: nn.Module) -> int:
    """Trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters())
