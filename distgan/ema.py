"""The moving average of the generator's weights, from which samples are drawn."""

import torch
from torch import nn


def ema_decay(clips_a_step: int, clips_seen: int, half_life: float, ramp: float) -> float:
    """The decay for one step: half-life in clips, at most `ramp` times the clips seen so far.

    (StyleGAN2-ADA, Karras et al. 2020.) Half-life 0 gives 0: the average is the generator.
    """
    if ramp > 0:
        half_life = min(half_life, ramp * clips_seen)
    return float(0.5 ** (clips_a_step / half_life)) if half_life > 0 else 0.0


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * module."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
