"""Attention of each token to its neighbourhood in time and space, as NATTEN has it.

Shapes: L tokens of a grid (T, H, W), N heads, D head dim, M queries of a tile, R keys it reads.
"""

import functools
import math

import torch
from torch import Tensor

from distgan.attention.flex import Sees
from distgan.attention.local import LocalAttention
from distgan.attention.tiles import Tiles, combine, outer, place_of_each
from distgan.config import AttentionConfig
from distgan.sparsity import Grid, window_on, window_start

TILE: Grid = (2, 4, 4)  # tokens whose windows are read together


class WindowAttention(LocalAttention):
    """Neighbourhood attention (Hassani et al. 2023) in 3D: a token sees the window (t, h, w) that
    has it in its middle, moved inside the grid near an edge.

    A window over the whole grid is `self`.
    """

    def __init__(self, width: int, head_dim: int, config: AttentionConfig) -> None:
        super().__init__(width, head_dim, config)
        self.window = config.window

    def tiles(self, grid: Grid, device: torch.device) -> Tiles:
        return window_tiles(grid, window_on(grid, self.window), device)

    def sees(self, grid: Grid, device: torch.device) -> Sees:
        sizes = window_on(grid, self.window)
        tables = [_axis_mask(n, size).to(device) for n, size in zip(grid, sizes, strict=True)]
        _, height, width = grid

        def sees(query: Tensor, key: Tensor) -> Tensor:
            in_time = tables[0][query // (height * width), key // (height * width)]
            in_height = tables[1][query // width % height, key // width % height]
            return in_time & in_height & tables[2][query % width, key % width]

        return sees

    def num_pairs(self, grid: Grid) -> int:
        return math.prod(grid) * math.prod(window_on(grid, self.window))


def _axis_mask(length: int, size: int) -> Tensor:
    """(query, key) bool along one axis."""
    start_Q = torch.tensor([window_start(place, length, size) for place in range(length)])
    key = torch.arange(length)
    return (key >= start_Q[:, None]) & (key < start_Q[:, None] + size)


@functools.lru_cache(maxsize=64)
def window_tiles(grid: Grid, window: Grid, device: torch.device) -> Tiles:
    """Tiles of neighbouring queries, with the region around each that holds all their windows."""
    axes = [
        _axis_tables(length, size, min(tile, length))
        for length, size, tile in zip(grid, window, TILE, strict=True)
    ]
    queries, inside, keys, seen = zip(*axes, strict=True)
    queries_JM, stand_in_JM = combine(grid, *queries), ~outer(*inside)
    seen_JMR = outer(*seen)
    return Tiles(
        queries_JM=queries_JM.to(device),
        stand_in_JM=stand_in_JM.to(device) if stand_in_JM.any() else None,
        units_JU=combine(grid, *keys).to(device),
        unit_is_tile=False,
        seen_JMR=None if seen_JMR.all() else seen_JMR.to(device),
        place_L=place_of_each(queries_JM, stand_in_JM).to(device),
    )


def _axis_tables(length: int, size: int, tile: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along one axis: queries (n, m), whether each is one, keys (n, r), seen (n, m, r)."""
    region = min(tile + size - 1, length)
    starts = torch.arange(0, length, tile)
    query = starts[:, None] + torch.arange(tile)
    inside, query = query < length, query.clamp(max=length - 1)
    key = (starts - size // 2).clamp(0, length - region)[:, None] + torch.arange(region)
    first = (query - size // 2).clamp(0, length - size)[..., None]
    seen = (key[:, None] >= first) & (key[:, None] < first + size)
    return query, inside, key, seen
