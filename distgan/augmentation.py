"""Simple augmentations before the discriminator: one draw for all frames of a clip.

Differentiable, and applied to real and generated clips alike (DiffAugment, Zhao et al. 2020), so
that the generator does not learn them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distgan.config import AugmentConfig
from distgan.seeding import normal_per_clip, uniform_per_clip


def augment(
    video_BCTHW: Tensor,
    config: AugmentConfig,
    *,
    seed: int,
    purpose: str,
    step: int,
    places: Sequence[int],
) -> Tensor:
    """Flip, brightness, contrast, saturation with `probability` each, then instance noise.

    `places` are the clips' places in the global batch. The same shape comes back.
    """
    device = video_BCTHW.device
    if config.probability > 0:
        draws_BK = uniform_per_clip(
            8, seed=seed, purpose=f"augment/{purpose}", step=step, places=places, device=device
        )
        video_BCTHW = augment_drawn(video_BCTHW, config, draws_BK)
    if config.instance_noise > 0:
        noise = normal_per_clip(
            tuple(video_BCTHW.shape[1:]),
            seed=seed,
            purpose=f"instance-noise/{purpose}",
            step=step,
            places=places,
            device=device,
        )
        video_BCTHW = video_BCTHW + config.instance_noise * noise
    return video_BCTHW


def augment_drawn(video_BCTHW: Tensor, config: AugmentConfig, draws_BK: Tensor) -> Tensor:
    """By draws in [0, 1), (B, 8): columns 0-3 say whether flip, brightness, contrast and saturation
    are applied, 4-6 by how much, 7 which way the flip goes."""
    applied_BK = (draws_BK[:, :4] < config.probability).to(video_BCTHW.dtype)
    amount_BK = (2 * draws_BK[:, 4:7] - 1) * applied_BK[:, 1:]
    brightness, contrast, saturation = (
        amount_BK[:, k].view(-1, 1, 1, 1, 1) * size
        for k, size in enumerate((config.brightness, config.contrast, config.saturation))
    )
    if config.flip:
        flips = applied_BK[:, 0].bool() & (draws_BK[:, 7] < 0.5)
        video_BCTHW = torch.where(flips.view(-1, 1, 1, 1, 1), video_BCTHW.flip(-1), video_BCTHW)
    grey = video_BCTHW.mean(dim=1, keepdim=True)
    video_BCTHW = grey + (video_BCTHW - grey) * (1 + saturation)
    mean = video_BCTHW.mean(dim=(1, 2, 3, 4), keepdim=True)
    return mean + (video_BCTHW - mean) * (1 + contrast) + brightness
