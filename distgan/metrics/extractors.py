"""A fixed 3D feature extractor that needs no weights from anywhere: its own, from a seed.

Random convolutional features order sets of clips usefully, but their distances are proxies: compare
them within one data set and one extractor, never with published FVD numbers.
Legend: B clips, C channels, T frames, H height, W width, F features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distgan.seeding import derive_seed

NAME = "seeded-conv3d-1"
"""Written beside every distance; changes whenever the features do."""

_CHANNELS = (16, 24, 24)
_STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
_LARGEST_SIZE = 64
_SMALLEST_SIZE = 16


class SeededExtractor(nn.Module):
    """Three 3D convolutions over the frames and their differences; F = 128 features a clip.

    Each layer gives its channels' mean and standard deviation over space and time. The weights are
    frozen, the same on every machine, and leave PyTorch's global random state alone.
    """

    num_features = 2 * sum(_CHANNELS)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(derive_seed(seed, NAME))
        inputs = (6, *_CHANNELS[:-1])
        for layer, (fan_in, fan_out) in enumerate(zip(inputs, _CHANNELS, strict=True)):
            weight = torch.randn((fan_out, fan_in, 3, 3, 3), generator=generator)
            # Filters that nearly sum to zero: form and motion outweigh flat brightness.
            weight = weight - 0.8 * weight.mean(dim=(2, 3, 4), keepdim=True)
            weight = weight * (2.0 / (27 * fan_in)) ** 0.5
            bias = 0.1 * torch.randn(fan_out, generator=generator)
            self.register_buffer(f"weight_{layer}", weight, persistent=False)
            self.register_buffer(f"bias_{layer}", bias, persistent=False)

    @torch.no_grad()
    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Features (B, F) float32 of clips (B, 3, T, H, W) in [-1, 1], T >= 2, H and W >= 16.

        Larger frames are first averaged down to at most 64 pixels.

        Raises:
            ValueError: another shape.
        """
        shape = tuple(video_BCTHW.shape)
        if len(shape) != 5 or shape[1] != 3 or shape[2] < 2 or min(shape[3:]) < _SMALLEST_SIZE:
            raise ValueError(f"expected clips (B, 3, T >= 2, H >= 16, W >= 16), not {shape}")
        video = _shrink(video_BCTHW.float())
        # Motion as input: each frame's difference from the one before, none before the first.
        motion = F.pad(video.diff(dim=2), (0, 0, 0, 0, 1, 0))
        x = torch.cat([video, motion], dim=1).contiguous(memory_format=torch.channels_last_3d)
        features = []
        for layer, stride in enumerate(_STRIDES):
            weight, bias = self.get_buffer(f"weight_{layer}"), self.get_buffer(f"bias_{layer}")
            x = F.leaky_relu(F.conv3d(x, weight, bias, stride=stride, padding=1), 0.2)
            flat = x.flatten(2)
            features += [flat.mean(dim=2), flat.std(dim=2, correction=0)]
        return torch.cat(features, dim=1)


def _shrink(video_BCTHW: Tensor) -> Tensor:
    """Averages areas so that the longer side has at most 64 pixels."""
    height, width = video_BCTHW.shape[3:]
    scale = min(1.0, _LARGEST_SIZE / max(height, width))
    if scale == 1.0:
        return video_BCTHW
    frames = video_BCTHW.shape[2]
    size = (frames, max(round(height * scale), 1), max(round(width * scale), 1))
    return F.adaptive_avg_pool3d(video_BCTHW, size)
