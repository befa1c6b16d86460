"""Gradient penalties R1 and R2 (Mescheder et al. 2018): the squared norm of D's input gradient.

Two forms by finite differences need no second derivative, so every attention kernel and every ZeRO
stage stays usable; `exact` is the reference. All must run in float32: the difference loses its
digits in bf16.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.attention import twice_differentiable

Discriminator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PenaltyTerm:
    """What a penalty at one video needs of D, and how its value follows.

    The videos to score travel in D's one forward with real and fake, so that one backward suffices.
    """

    moved_videos: Sequence[Tensor]
    """Moved copies (B, 3, T, H, W) whose scores are needed."""
    squared_norm: Callable[[Tensor, Sequence[Tensor]], Tensor]
    """From the video's own score (B,) and those of the copies to |grad D|^2 (B,), whose gradient
    with respect to D's parameters is right."""


def random_direction(video_BCTHW: Tensor, direction_BCTHW: Tensor, step: float) -> PenaltyTerm:
    """(D(x) - D(x + s n))^2 / s^2 with `direction` n standard normal per pixel.

    Its expectation is |grad D|^2 as s goes to 0 (Seaweed-APT, Lin et al. 2025, equation 2).
    """

    def squared_norm(score_B: Tensor, moved: Sequence[Tensor]) -> Tensor:
        return (score_B - moved[0]).square() / step**2

    return PenaltyTerm([video_BCTHW + step * direction_BCTHW], squared_norm)


def gradient_direction(frozen: Discriminator, video_BCTHW: Tensor, step: float) -> PenaltyTerm:
    """|v|^2 for v = grad D(x), from D's scores at x moved by `step` (L2) along v and against it.

    With D frozen, v is an ordinary gradient. The difference quotient q of the two scores has the
    value |v| and the parameter gradient v dv / |v|, up to O(step^2) as D is smooth; so 2 |v| q has
    the gradient of |v|^2, and its value is set right.
    """
    video = video_BCTHW.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(frozen(video).sum(), video)
    norm_B = gradient.flatten(1).norm(dim=1)
    # Divided first: where the gradient vanishes, step / norm would overflow for large steps.
    unit = gradient / norm_B.clamp_min(torch.finfo(norm_B.dtype).tiny).view(-1, 1, 1, 1, 1)
    offset = step * unit

    def squared_norm(score_B: Tensor, moved: Sequence[Tensor]) -> Tensor:
        squared_B = norm_B * (moved[0] - moved[1]) / (2 * step)
        return 2 * squared_B - squared_B.detach()

    return PenaltyTerm([video_BCTHW + offset, video_BCTHW - offset], squared_norm)


def exact(discriminator: Discriminator, video_BCTHW: Tensor) -> PenaltyTerm:
    """|grad D|^2 through a second derivative; attention takes a path that has one."""

    def squared_norm(score_B: Tensor, moved: Sequence[Tensor]) -> Tensor:
        video = video_BCTHW.detach().requires_grad_()
        with twice_differentiable():
            (gradient,) = torch.autograd.grad(discriminator(video).sum(), video, create_graph=True)
        return gradient.square().flatten(1).sum(dim=1)

    return PenaltyTerm([], squared_norm)
