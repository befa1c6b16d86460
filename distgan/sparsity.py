"""How many tokens the local kinds of attention see; plain Python, no torch.

A grid is (T, H, W). The rules here are the definitions; `distgan/attention/` builds index tables
from them, and configurations are checked by them.
"""

import math
from collections.abc import Iterable

Grid = tuple[int, int, int]


def window_on(grid: Grid, window: Grid) -> Grid:
    """Keys that a token sees along each axis; 0 stands for the whole axis."""
    return three(size or length for size, length in zip(window, grid, strict=True))


def window_start(place: int, length: int, size: int) -> int:
    """First of the `size` keys of an axis that the token at `place` sees.

    The token stands in their middle, except near an edge, where the window stays inside
    (neighbourhood attention, Hassani et al. 2023): so every token sees equally many.
    """
    return min(max(place - size // 2, 0), length - size)


def block_grid(grid: Grid, block: Grid) -> Grid:
    """Blocks along each axis; the last ones may stand out over the edge."""
    return three(-(-length // size) for length, size in zip(grid, block, strict=True))


def near_per_axis(blocks: Grid, reach: Grid) -> Grid:
    """Near blocks along each axis: a window of 2 reach + 1 (see `window_start`), or all."""
    return three(min(2 * r + 1, n) for r, n in zip(reach, blocks, strict=True))


def num_seen(grid: Grid, block: Grid, density: float) -> int:
    """Blocks that each block sees: the density's share of all, rounded, at least 1."""
    return max(1, round(density * math.prod(block_grid(grid, block))))


def least_density(grid: Grid, block: Grid, reach: Grid) -> float:
    """The density at which a block sees those in reach and no others."""
    blocks = block_grid(grid, block)
    return math.prod(near_per_axis(blocks, reach)) / math.prod(blocks)


def three(values: Iterable[int]) -> Grid:
    """Of three values, one an axis."""
    t, h, w = values
    return t, h, w
