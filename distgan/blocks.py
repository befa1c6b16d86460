"""Convolutional parts shared by generator and discriminator.

Feature maps are kept as (B, T, H, W, C): channels last suits every kernel used here. Convolutions
are factorised into space (3x3 in each frame) and time (3 frames at each place), as in R(2+1)D
(Tran et al. 2018), and computed by 2D kernels: they are faster than 3D ones, and oneDNN's bf16 3D
weight gradient is wrong on clips of two frames (seen with torch 2.13; tests/test_blocks.py).

Shapes: B clips, T frames, H, W, C channels, S style.
"""

import contextlib
import math
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.seeding import derive_seed

CONV_GAIN = 1.39  # keeps the deviation through SiLU about the same from block to block
# Residual branches start alive: at 0 the discriminator starts linear, rewards one bright template,
# and the generator collapses onto it within 200 steps (seen on the demo's videos).
BRANCH_GAIN = 0.7
LARGE = 2.0**40
Layer = TypeVar("Layer", bound=nn.Module)


class SpatialConv(nn.Conv2d):
    """3x3 in each frame."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        images = x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
        return super().forward(images).permute(0, 2, 3, 1).unflatten(0, x_BTHWC.shape[:2])


class TemporalConv(nn.Conv2d):
    """3 frames at each place."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 1), padding=(1, 0))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        columns = x_BTHWC.flatten(2, 3).permute(0, 3, 1, 2)
        return super().forward(columns).permute(0, 2, 3, 1).unflatten(2, x_BTHWC.shape[2:4])


def activate(x: Tensor) -> Tensor:
    """SiLU: smooth, so that finite differences of the discriminator are its gradients."""
    return F.silu(x)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """While inside, autocast is off; the meta device, where costs are counted, has none."""
    if x.device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def normalise_channels(x: Tensor) -> Tensor:
    """Layer normalisation over the last axis (Ba et al. 2016), without parameters.

    Of float32 numbers, and bf16 has their range, the squares overflow from 3e18 on: places with
    larger values than LARGE are brought down to it first. All others are multiplied by 1, which
    changes no bit.
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    return F.layer_norm(x * (LARGE / largest.clamp(min=LARGE)), x.shape[-1:])


class ResidualBlock(nn.Module):
    """Space, time, space; no normalisation (discriminator and encoder)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space_in = SpatialConv(channels, channels)
        self.time = TemporalConv(channels, channels)
        self.space_out = start_with(SpatialConv(channels, channels), Start(gain=BRANCH_GAIN))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        h = self.space_in(activate(x_BTHWC))
        h = self.time(activate(h))
        return x_BTHWC + self.space_out(activate(h))


class ModulatedBlock(nn.Module):
    """A residual block whose normalised input is scaled and shifted by the style (generator)."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(style_dim, 2 * channels)
        self.space_in = SpatialConv(channels, channels)
        self.time = TemporalConv(channels, channels)
        self.space_out = start_with(SpatialConv(channels, channels), Start(gain=BRANCH_GAIN))

    def forward(self, x_BTHWC: Tensor, style_BS: Tensor) -> Tensor:
        scale, shift = self.modulation(style_BS)[:, None, None, None, :].chunk(2, dim=-1)
        h = torch.addcmul(shift, x_BTHWC.to(shift.dtype), 1 + scale)
        h = self.space_in(activate(h))
        h = self.time(activate(h))
        return x_BTHWC + self.space_out(activate(h))


def space_to_depth(x_BTHWC: Tensor, space: int, time: int = 1) -> Tensor:
    """(B, T, H, W, C) -> (B, T / time, H / space, W / space, C * time * space^2)."""
    batch, frames, height, width, channels = x_BTHWC.shape
    t, h, w = frames // time, height // space, width // space
    cells = x_BTHWC.reshape(batch, t, time, h, space, w, space, channels)
    return cells.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, t, h, w, -1)


def depth_to_space(x_BTHWC: Tensor, space: int, time: int = 1) -> Tensor:
    """The inverse of `space_to_depth`."""
    batch, t, h, w, depth = x_BTHWC.shape
    channels = depth // (time * space**2)
    cells = x_BTHWC.reshape(batch, t, h, w, time, space, space, channels)
    cells = cells.permute(0, 1, 4, 2, 5, 3, 6, 7)
    return cells.reshape(batch, t * time, h * space, w * space, channels)


class Downsample(nn.Module):
    """A learned linear map of each 2x2 cell (and, if asked, 2 frames) to one place."""

    def __init__(self, inputs: int, outputs: int, in_time: bool) -> None:
        super().__init__()
        self.time = 2 if in_time else 1
        self.map = nn.Linear(inputs * 4 * self.time, outputs, bias=False)
        start_with(self.map, Start(input_cells=4 * self.time))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        return self.map(space_to_depth(x_BTHWC, 2, self.time))


class Smooth(nn.Module):
    """Binomial low-pass (1 2 1) / 4 along height and width; takes out the finest checkerboard.

    Without it, what enlarging leaves between neighbouring cells stays as a mesh over the picture
    (why: StyleGAN3, Karras et al. 2021).
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Tensor
        self.register_buffer("kernel", torch.empty(3, 3), persistent=False)  # by `initialise`

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        images = x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
        channels = images.shape[1]
        weight = self.kernel.to(images.dtype).expand(channels, 1, 3, 3)
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        smoothed = F.conv2d(padded, weight, groups=channels)
        return smoothed.permute(0, 2, 3, 1).unflatten(0, x_BTHWC.shape[:2])


class Upsample(nn.Module):
    """A learned linear map of one place to each 2x2 cell (and, if asked, 2 frames), smoothed."""

    def __init__(self, inputs: int, outputs: int, in_time: bool) -> None:
        super().__init__()
        self.time = 2 if in_time else 1
        self.map = nn.Linear(inputs, outputs * 4 * self.time, bias=False)
        start_with(self.map, Start(output_cells=4 * self.time))
        self.smooth = Smooth()

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        return self.smooth(depth_to_space(self.map(x_BTHWC), 2, self.time))


def levels_that_halve_time(temporal_levels: int, num_levels: int) -> list[bool]:
    """For each step between levels, finest first: does it halve the frames?"""
    steps = num_levels - 1
    return [step >= steps - temporal_levels for step in range(steps)]


@dataclass(frozen=True)
class Start:
    """How a layer's weights start, where that differs from a plain random draw."""

    gain: float = 1.0
    input_cells: int = 1
    """The inputs are so many cells of a patch: the same weights for each, so that it starts as an
    average of them."""
    output_cells: int = 1
    """The outputs are so many cells of a patch: the same weights for each, so that it starts as
    nearest-neighbour enlargement, without checkerboard (ICNR, Aitken et al. 2017)."""


def start_with(layer: Layer, start: Start) -> Layer:
    """Attaches a start to a layer; `initialise` reads it."""
    layer.start = start  # type: ignore[assignment]
    return layer


def initialise(module: nn.Module, seed: int, purpose: str) -> None:
    """Sets every parameter from (seed, purpose, its name), without global random state, and the
    fixed kernels.

    Weights are normal with variance gain^2 / fan-in (gain times CONV_GAIN for convolutions, which
    follow an activation; He et al. 2015), biases zero, scales one.

    Raises:
        AssertionError: a parameter or buffer that no rule covers.
    """
    for module_name, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            assert isinstance(part, Smooth), f"no start value for {name} of {type(part).__name__}"
            taps = torch.tensor([0.25, 0.5, 0.25])
            buffer.copy_(torch.outer(taps, taps))
        for name, parameter in part.named_parameters(recurse=False):
            full_name = f"{module_name}.{name}"
            generator = torch.Generator().manual_seed(derive_seed(seed, f"{purpose}/{full_name}"))
            with torch.no_grad():
                parameter.copy_(_start_value(part, name, parameter, generator))


def _start_value(
    part: nn.Module, name: str, parameter: Tensor, generator: torch.Generator
) -> Tensor:
    shape = parameter.shape
    if name == "bias":
        return torch.zeros(shape)
    if isinstance(part, nn.RMSNorm):
        return torch.ones(shape)
    if isinstance(part, (nn.Conv2d, nn.Linear)):
        return _start_weight(part, shape, getattr(part, "start", Start()), generator)
    if name == "score_weight":  # (heads, head dim): additive attention
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
    assert name == "grid_weight", f"no start value for {name} of {type(part).__name__}"
    return torch.randn(shape, generator=generator) / math.sqrt(len(parameter))


def _start_weight(
    part: nn.Module, shape: torch.Size, start: Start, generator: torch.Generator
) -> Tensor:
    outputs, inputs = shape[0] // start.output_cells, shape[1] // start.input_cells
    one_cell = torch.randn(outputs, inputs, *shape[2:], generator=generator)
    gain = start.gain * (CONV_GAIN if isinstance(part, nn.Conv2d) else 1.0)
    one_cell *= gain / math.sqrt(one_cell[0].numel())
    repeats = (start.output_cells, start.input_cells, *(1 for _ in shape[2:]))
    return one_cell.repeat(repeats) / start.input_cells
