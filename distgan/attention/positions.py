"""Rotary positions in time and space. L tokens of a grid (T, H, W), N heads, D head dim."""

import functools

import torch
from torch import Tensor

from distgan.sparsity import Grid

ROTARY_BASE = 100.0  # wavelengths from 2 pi to about 600 cells: grids are tens of cells long


@functools.lru_cache(maxsize=64)
def rotary_angles(grid: Grid, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, D/2) of rotary positions (RoFormer, Su et al. 2021) in three axes.

    The D/2 channel pairs are dealt to time, height and width in turn. Where they are fewer than 3,
    the axes are dealt to the pairs: a pair turns by the sum of its axes' angles (as with the mixed
    frequencies of Heo et al. 2024, section 3.2), each axis at a speed of its own.
    """
    num_pairs = head_dim // 2
    turns = torch.arange(max(num_pairs, 3))  # each an axis for a pair
    axis, pair, rank = turns % 3, turns % num_pairs, torch.maximum(turns // 3, turns // num_pairs)
    num_ranks = int(rank.max()) + 1
    frequency_3P = torch.zeros(3, num_pairs, dtype=torch.float64)
    frequency_3P[axis, pair] = ROTARY_BASE ** (-rank.double() / num_ranks)
    axes = [torch.arange(length, dtype=torch.float64) for length in grid]
    positions_L3 = torch.cartesian_prod(*axes).reshape(-1, 3)
    # No matrix product: costs count those.
    angles = (positions_L3[..., None] * frequency_3P).sum(dim=1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x_BNLD: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    """Turns each channel pair (first half, second half) by its position's angle."""
    first, second = x_BNLD.chunk(2, dim=-1)
    cos_LP, sin_LP = cos_LP.to(x_BNLD.dtype), sin_LP.to(x_BNLD.dtype)
    return torch.cat((first * cos_LP - second * sin_LP, second * cos_LP + first * sin_LP), dim=-1)
