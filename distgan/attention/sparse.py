"""Block-sparse attention in time and space: near blocks, and far ones at even strides.

Shapes: L tokens of a grid (T, H, W), N heads, D head dim, J blocks of M tokens.
"""

import functools

import torch

from distgan.attention.flex import Sees
from distgan.attention.local import LocalAttention
from distgan.attention.tiles import Tiles, combine, outer, place_of_each
from distgan.config import AttentionConfig
from distgan.sparsity import Grid, block_grid, seen_blocks


class SparseAttention(LocalAttention):
    """A token sees the tokens of the blocks that its block sees: `sparsity.seen_blocks`.

    Local and strided, as the Sparse Transformer's patterns (Child et al. 2019, section 4.2), in
    three axes and in whole blocks, so that it computes dense products only. At density 1 it is
    `self`.
    """

    def __init__(self, width: int, head_dim: int, config: AttentionConfig) -> None:
        super().__init__(width, head_dim, config)
        self.block, self.reach, self.density = config.block, config.reach, config.density

    def tiles(self, grid: Grid, device: torch.device) -> Tiles:
        return sparse_tiles(grid, self.block, self.reach, self.density, device)

    def sees(self, grid: Grid, device: torch.device) -> Sees:
        axes = [
            torch.arange(length, device=device) // size
            for length, size in zip(grid, self.block, strict=True)
        ]
        _, height, width = block_grid(grid, self.block)
        t, h, w = torch.meshgrid(*axes, indexing="ij")
        block_L = ((t * height + h) * width + w).flatten()
        blocks = seen_blocks(grid, self.block, self.reach, self.density)
        seen_JJ = torch.zeros(len(blocks), len(blocks), dtype=torch.bool, device=device)
        seen_JJ.scatter_(1, torch.tensor(blocks, device=device), True)
        return lambda query, key: seen_JJ[block_L[query], block_L[key]]

    def num_pairs(self, grid: Grid) -> int:
        sizes = _block_sizes(grid, self.block)
        seen = seen_blocks(grid, self.block, self.reach, self.density)
        return sum(
            sizes[number] * sum(sizes[other] for other in others)
            for number, others in enumerate(seen)
        )


def _block_sizes(grid: Grid, block: Grid) -> list[int]:
    """Tokens of each block: fewer than `block` holds at the far edges."""
    axes = [
        [min(size, length - start) for start in range(0, length, size)]
        for length, size in zip(grid, block, strict=True)
    ]
    return [t * h * w for t in axes[0] for h in axes[1] for w in axes[2]]


@functools.lru_cache(maxsize=64)
def sparse_tiles(
    grid: Grid, block: Grid, reach: Grid, density: float, device: torch.device
) -> Tiles:
    """A tile a block; stand-ins fill blocks that stand out over an edge, and no one sees them."""
    places = [
        torch.arange(-(-length // size) * size).view(-1, size)
        for length, size in zip(grid, block, strict=True)
    ]
    inside = [axis < length for axis, length in zip(places, grid, strict=True)]
    clamped = [axis.clamp(max=length - 1) for axis, length in zip(places, grid, strict=True)]
    queries_JM, stand_in_JM = combine(grid, *clamped), ~outer(*inside)
    units_JU = torch.tensor(seen_blocks(grid, block, reach, density))
    seen_J1R = None
    if stand_in_JM.any():
        seen_J1R = ~stand_in_JM[units_JU].flatten(1)[:, None]
    return Tiles(
        queries_JM=queries_JM.to(device),
        stand_in_JM=stand_in_JM.to(device) if stand_in_JM.any() else None,
        units_JU=units_JU.to(device),
        unit_is_tile=True,
        seen_JMR=None if seen_J1R is None else seen_J1R.to(device),
        place_L=place_of_each(queries_JM, stand_in_JM).to(device),
    )
