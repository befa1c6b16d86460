"""Optimizers and the schedules of learning rate and penalty strength."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from distgan.config import NetworkOptimConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: NetworkOptimConfig
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019) or SGD.

    Not PyTorch's fused ones: on CPUs they round the last few elements of a tensor unlike the
    others, and where a tensor ends depends on the ZeRO stage and the number of ranks.
    """
    match config.kind:
        case "sgd":
            return torch.optim.SGD(
                parameters,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
        case kind:
            optimizer = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
            return optimizer(
                parameters,
                lr=config.lr,
                betas=(float(config.beta1), float(config.beta2)),
                weight_decay=config.weight_decay,
            )


def learning_rate(config: NetworkOptimConfig, step: int, schedule_steps: int) -> float:
    """The rate for the update that makes step `step` (the first is 1)."""
    warmup = min(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    return config.lr * warmup * decay(config.schedule, config.lr_final, step, schedule_steps)


def decay(kind: str, final: float, step: int, schedule_steps: int) -> float:
    """A factor that falls from 1 to `final` over the schedule and then stays."""
    if kind == "constant":
        return 1.0
    progress = min(step / schedule_steps, 1.0)
    remaining = 1 - progress if kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return final + (1 - final) * remaining
