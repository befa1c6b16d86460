"""Rotary positions in time and space. L tokens of a grid (T, H, W), N heads, D head dim."""

import functools

import torch
from torch import Tensor

from distgan.sparsity import Grid

ROTARY_BASE = 100.0  # wavelengths from 2 pi to about 600 cells: grids are tens of cells long


@functools.lru_cache(maxsize=64)
def rotary_angles(grid: Grid, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, D/2) of rotary positions (RoFormer, Su et al. 2021) in three axes.

    The D/2 channel pairs are dealt to time, height and width in turn.
    """
    pairs = torch.arange(head_dim // 2)
    axis_of_pair, rank = pairs % 3, pairs // 3
    num_ranks = max((head_dim // 2 + 2) // 3, 1)
    frequency = ROTARY_BASE ** (-rank.double() / num_ranks)
    axes = [torch.arange(length, dtype=torch.float64) for length in grid]
    positions_L3 = torch.cartesian_prod(*axes).reshape(-1, 3)
    angles = positions_L3[:, axis_of_pair] * frequency
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x_BNLD: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    """Turns each channel pair (first half, second half) by its position's angle."""
    first, second = x_BNLD.chunk(2, dim=-1)
    cos_LP, sin_LP = cos_LP.to(x_BNLD.dtype), sin_LP.to(x_BNLD.dtype)
    return torch.cat((first * cos_LP - second * sin_LP, second * cos_LP + first * sin_LP), dim=-1)
