"""The moving average of the generator's weights, from which samples are drawn."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from distgan.checkpoint import Fragment, whole
from distgan.generator import Generator

EMA = "ema"
"""First part of the names of the average's tensors in a checkpoint, as in `ema/PARAMETER`."""


class Average(Protocol):
    """The averaged generator of a run, wherever its weights lie."""

    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * generator."""
        ...

    def whole(self) -> contextlib.AbstractContextManager[Generator]:
        """The averaged generator, to sample from or to export; every rank enters at once."""
        ...

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the whole average, by its names in a checkpoint."""
        ...

    def state_fragments(self) -> list[Fragment]:
        """The pieces that this rank owns."""
        ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what it owns of whole tensors; they hold more than the average's."""
        ...


class PlainAverage:
    """The whole average in this process, beside the generator whose weights it follows."""

    def __init__(self, average: Generator, source: nn.Module) -> None:
        self.generator = average.requires_grad_(False)
        self.source = source

    @torch.no_grad()
    def update(self, decay: float) -> None:
        own: list[Tensor] = list(self.generator.parameters())
        source: list[Tensor] = list(self.source.parameters())
        torch._foreach_lerp_(own, source, 1 - decay)

    @contextlib.contextmanager
    def whole(self) -> Iterator[Generator]:
        yield self.generator

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{EMA}/{n}": tuple(p.shape) for n, p in self.generator.named_parameters()}

    def state_fragments(self) -> list[Fragment]:
        return whole({f"{EMA}/{n}": p for n, p in self.generator.named_parameters()})

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.generator.named_parameters():
            parameter.copy_(tensors[f"{EMA}/{name}"])


def ema_decay(clips_a_step: int, clips_seen: int, half_life: float, ramp: float) -> float:
    """The decay for one step: half-life in clips, at most `ramp` times the clips seen so far.

    (StyleGAN2-ADA, Karras et al. 2020.) Half-life 0 gives 0: the average is the generator.
    """
    if ramp > 0:
        half_life = min(half_life, ramp * clips_seen)
    return float(0.5 ** (clips_a_step / half_life)) if half_life > 0 else 0.0
