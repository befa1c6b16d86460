"""Video discriminator: a clip to one score, with logits taken at several depths.

Sees motion through temporal convolutions at every level. No normalisation over the batch or over
positions, and no bias at the very end: under a relativistic loss its true gradient is zero.

Shapes: B clips, C channels, T frames, H, W.
"""

import math

import torch
from torch import Tensor, nn

from distgan.attention import attention_at
from distgan.blocks import (
    Downsample,
    ResidualBlock,
    SpatialConv,
    Start,
    activate,
    levels_that_halve_time,
    space_to_depth,
    start_with,
    without_autocast,
)
from distgan.config import ModelConfig

SCORE_GAIN = 0.3  # scales the score, so that one optimizer step does not overturn it


class DiscriminatorLevel(nn.Module):
    """Residual blocks and attention at one resolution, and this depth's logit."""

    def __init__(self, width: int, blocks: int, attention: list[nn.Module], has_head: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ResidualBlock(width) for _ in range(blocks)])
        self.attention = nn.ModuleList(attention)
        self.head = nn.Linear(width, 1, bias=False) if has_head else None

    def forward(self, x_BTHWC: Tensor) -> tuple[Tensor, Tensor | None]:
        for part in (*self.blocks, *self.attention):
            x_BTHWC = part(x_BTHWC)
        if self.head is None:
            return x_BTHWC, None
        with without_autocast(x_BTHWC):
            pooled_BC = activate(x_BTHWC.float()).mean(dim=(1, 2, 3))
            return x_BTHWC, self.head(pooled_BC)[:, 0]


class FinalHead(nn.Module):
    """The coarsest map to a logit: weights over the whole grid, then two layers, in float32."""

    def __init__(self, width: int, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid_weight = nn.Parameter(torch.empty(math.prod(grid), width))
        self.hidden = nn.Linear(width, width)
        self.logit = nn.Linear(width, 1, bias=False)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        with without_autocast(x_BTHWC):
            pooled_BC = (activate(x_BTHWC.float()).flatten(1, 3) * self.grid_weight).sum(dim=1)
            return self.logit(activate(self.hidden(pooled_BC)))[:, 0]


class Discriminator(nn.Module):
    """The whole network: (B, 3, T, H, W) in about [-1, 1] to scores (B,), float32."""

    def __init__(self, config: ModelConfig, resolution: int, frames: int) -> None:
        super().__init__()
        own = config.discriminator
        widths = own.channels
        heights = [resolution // config.patch // 2**level for level in range(len(widths))]
        self.patch = config.patch
        self.stem = start_with(
            SpatialConv(3 * config.patch**2, widths[0]), Start(input_cells=config.patch**2)
        )
        self.levels = nn.ModuleList(
            DiscriminatorLevel(
                width,
                own.blocks,
                attention_at(height, width, config.attention, "discriminator"),
                has_head=level > 0,  # the finest level sees too little for a logit of its own
            )
            for level, (width, height) in enumerate(zip(widths, heights, strict=True))
        )
        in_time = levels_that_halve_time(config.temporal_levels, len(widths))
        self.down = nn.ModuleList(
            Downsample(fine, coarse, halve)
            for fine, coarse, halve in zip(widths[:-1], widths[1:], in_time, strict=True)
        )
        grid = (frames // 2**config.temporal_levels, heights[-1], heights[-1])
        self.final = FinalHead(widths[-1], grid)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        patches = space_to_depth(video_BCTHW.permute(0, 2, 3, 4, 1), self.patch)
        x, _ = self.levels[0](self.stem(patches))
        score_B = torch.zeros(len(video_BCTHW), device=video_BCTHW.device)
        for down, level in zip(self.down, self.levels[1:], strict=True):
            x, logit_B = level(down(x))
            score_B = score_B + logit_B
        return SCORE_GAIN * (score_B + self.final(x))
