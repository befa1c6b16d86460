"""Encoder-decoder generator: noise, and perhaps a given video, to a new video.

The decoder writes the new clip from a style vector; noise enters by modulation of every block. The
encoder reads the given video (and which of its pixels are known) and hands its feature maps to the
decoder level by level; it is built only where a task gives a video.

Shapes: B clips, Z latent, S style, C channels, T frames, H, W.
"""

import torch
from torch import Tensor, nn

from distgan.attention import attention_at
from distgan.blocks import (
    Downsample,
    ModulatedBlock,
    ResidualBlock,
    Smooth,
    SpatialConv,
    Start,
    Upsample,
    activate,
    depth_to_space,
    levels_that_halve_time,
    space_to_depth,
    start_with,
)
from distgan.config import ModelConfig

SEED_CHANNELS = 32  # channels of the coarse map that z paints before the first block


class Mapping(nn.Module):
    """z to w: two layers (StyleGAN, Karras et al. 2019)."""

    def __init__(self, latent_dim: int, style_dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent_dim, style_dim)
        self.second = nn.Linear(style_dim, style_dim)

    def forward(self, latent_BZ: Tensor) -> Tensor:
        return activate(self.second(activate(self.first(latent_BZ))))


class EncoderLevel(nn.Module):
    """Residual blocks and attention at one resolution."""

    def __init__(self, width: int, blocks: int, attention: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ResidualBlock(width) for _ in range(blocks)])
        self.attention = nn.ModuleList(attention)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        for part in (*self.blocks, *self.attention):
            x_BTHWC = part(x_BTHWC)
        return x_BTHWC


class Encoder(nn.Module):
    """The given video to one feature map per level, finest first."""

    def __init__(self, config: ModelConfig, resolution: int) -> None:
        super().__init__()
        self.patch, widths = config.patch, config.generator.channels
        heights = [resolution // config.patch // 2**level for level in range(len(widths))]
        self.stem = start_with(
            SpatialConv(4 * config.patch**2, widths[0]), Start(input_cells=config.patch**2)
        )
        self.levels = nn.ModuleList(
            EncoderLevel(
                width,
                config.generator.blocks,
                attention_at(height, width, config.attention, "encoder"),
            )
            for width, height in zip(widths, heights, strict=True)
        )
        in_time = levels_that_halve_time(config.temporal_levels, len(widths))
        self.down = nn.ModuleList(
            Downsample(fine, coarse, halve)
            for fine, coarse, halve in zip(widths[:-1], widths[1:], in_time, strict=True)
        )

    def forward(self, given_BCTHW: Tensor, known_B1THW: Tensor) -> list[Tensor]:
        both_BTHWC = torch.cat((given_BCTHW, known_B1THW), dim=1).permute(0, 2, 3, 4, 1)
        x = self.stem(space_to_depth(both_BTHWC, self.patch))
        features = [self.levels[0](x)]
        for down, level in zip(self.down, self.levels[1:], strict=True):
            features.append(level(down(features[-1])))
        return features


class DecoderLevel(nn.Module):
    """Modulated blocks and attention at one resolution, with the encoder's map added first."""

    def __init__(
        self, width: int, blocks: int, style_dim: int, attention: list[nn.Module], reads: bool
    ) -> None:
        super().__init__()
        self.read = nn.Linear(width, width, bias=False) if reads else None
        self.blocks = nn.ModuleList([ModulatedBlock(width, style_dim) for _ in range(blocks)])
        self.attention = nn.ModuleList(attention)

    def forward(self, x_BTHWC: Tensor, style_BS: Tensor, encoded: Tensor | None) -> Tensor:
        if self.read is not None and encoded is not None:
            x_BTHWC = x_BTHWC + self.read(encoded)
        for block in self.blocks:
            x_BTHWC = block(x_BTHWC, style_BS)
        for layer in self.attention:
            x_BTHWC = layer(x_BTHWC)
        return x_BTHWC


class Generator(nn.Module):
    """The whole network. The output is linear: a saturating tanh stopped training (measured)."""

    def __init__(
        self, config: ModelConfig, resolution: int, frames: int, reads_video: bool
    ) -> None:
        super().__init__()
        own = config.generator
        widths = own.channels
        heights = [resolution // config.patch // 2**level for level in range(len(widths))]
        self.patch, self.latent_dim = config.patch, own.latent_dim
        self.coarse_grid = (frames // 2**config.temporal_levels, heights[-1], heights[-1])
        self.mapping = Mapping(own.latent_dim, own.style_dim)
        positions = self.coarse_grid[0] * self.coarse_grid[1] * self.coarse_grid[2]
        self.paint = nn.Linear(own.latent_dim, SEED_CHANNELS * positions)
        self.start = nn.Linear(SEED_CHANNELS, widths[-1], bias=False)
        self.encoder = Encoder(config, resolution) if reads_video else None
        self.levels = nn.ModuleList(
            DecoderLevel(
                width,
                own.blocks,
                own.style_dim,
                attention_at(height, width, config.attention, "decoder"),
                reads_video,
            )
            for width, height in zip(widths, heights, strict=True)
        )
        in_time = levels_that_halve_time(config.temporal_levels, len(widths))
        self.up = nn.ModuleList(
            Upsample(coarse, fine, double)
            for fine, coarse, double in zip(widths[:-1], widths[1:], in_time, strict=True)
        )
        self.to_video = start_with(
            SpatialConv(widths[0], 3 * config.patch**2),
            Start(gain=0.7, output_cells=config.patch**2),
        )
        self.smooth = Smooth() if config.patch > 1 else nn.Identity()

    def forward(
        self,
        latent_BZ: Tensor,
        given_BCTHW: Tensor | None = None,
        known_B1THW: Tensor | None = None,
        truncation: float = 1.0,
    ) -> Tensor:
        """A clip per latent: (B, 3, T, H, W), float32, about [-1, 1] but not bounded.

        Args:
            latent_BZ: noise; only its direction counts.
            given_BCTHW: the input video in [-1, 1], where the task gives one.
            known_B1THW: 1 where its pixels are true; those come out unchanged.
            truncation: length of z in units of its usual length: below 1, samples move towards
                the middle of what the network makes (BigGAN, Brock et al. 2019, section 3.1).
        """
        assert (given_BCTHW is None) == (known_B1THW is None) == (self.encoder is None)
        encoded: list[Tensor | None] = [None] * len(self.levels)
        if self.encoder is not None:
            encoded = list(self.encoder(given_BCTHW, known_B1THW))
        mean_square = latent_BZ.square().mean(dim=1, keepdim=True)
        z_BZ = latent_BZ * (truncation * torch.rsqrt(mean_square + 1e-8))
        style_BS = self.mapping(z_BZ)
        x = self.start(self.paint(z_BZ).view(-1, *self.coarse_grid, SEED_CHANNELS))
        x = self.levels[-1](x, style_BS, encoded[-1])
        for index in range(len(self.levels) - 2, -1, -1):
            x = self.levels[index](self.up[index](x), style_BS, encoded[index])
        pixels_BTHWC = self.smooth(depth_to_space(self.to_video(activate(x)), self.patch))
        video = pixels_BTHWC.permute(0, 4, 1, 2, 3).float()
        if given_BCTHW is None or known_B1THW is None:
            return video
        return given_BCTHW * known_B1THW + video * (1 - known_B1THW)
