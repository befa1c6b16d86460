"""Block-sparse attention in time and space: near blocks, and far ones at even strides.

Shapes: L tokens of a grid (T, H, W), N heads, D head dim, J blocks of M tokens, U blocks that each
sees, V of these that are near.
"""

import functools

import torch
from torch import Tensor

from distgan.attention.flex import Sees
from distgan.attention.local import LocalAttention
from distgan.attention.tiles import Tiles, combine, outer, place_of_each
from distgan.config import AttentionConfig
from distgan.sparsity import Grid, block_grid, near_per_axis, num_seen, window_start


class SparseAttention(LocalAttention):
    """A token sees the tokens of the blocks that its block sees: `seen_blocks`.

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
        seen_JU = self.tiles(grid, device).units_JU
        seen_JJ = torch.zeros(len(seen_JU), len(seen_JU), dtype=torch.bool, device=device)
        seen_JJ.scatter_(1, seen_JU, True)
        return lambda query, key: seen_JJ[block_L[query], block_L[key]]

    def num_pairs(self, grid: Grid) -> int:
        return _num_pairs(grid, self.block, self.reach, self.density)


def seen_blocks(grid: Grid, block: Grid, reach: Grid, density: float) -> Tensor:
    """For each block, in the order of time, height and width, the blocks that it sees, ascending.

    (J, U) int64. First the near ones. The rest of `num_seen` is taken from the far ones, listed in
    the same order, at even strides; the first stride begins one place later with each block, so
    that together they reach everything.
    """
    near_JV = _near_blocks(block_grid(grid, block), reach)
    num_blocks, num_near = near_JV.shape
    num_far, wanted = num_blocks - num_near, num_seen(grid, block, density) - num_near
    assert wanted >= 0, "check_config asks for a density that covers the reach"
    if wanted == 0:
        return near_JV
    starts_J1 = torch.arange(num_blocks, device="cpu")[:, None]
    strides = torch.arange(wanted, device="cpu") * num_far // wanted
    place_JF = (strides + starts_J1) % num_far  # in the list of far blocks
    # As many near blocks stand before a far one as have no more far ones before them than it has.
    far_before_JV = near_JV - torch.arange(num_near, device="cpu")
    far_JF = place_JF + torch.searchsorted(far_before_JV, place_JF, right=True)
    return torch.cat((near_JV, far_JF), dim=1).sort(dim=1).values


def _near_blocks(blocks: Grid, reach: Grid) -> Tensor:
    """(J, V): those in reach of each block, ascending."""
    axes = []
    for length, size in zip(blocks, near_per_axis(blocks, reach), strict=True):
        starts = [window_start(place, length, size) for place in range(length)]
        axes.append(torch.tensor(starts, device="cpu")[:, None] + torch.arange(size, device="cpu"))
    return combine(blocks, *axes)


@functools.lru_cache(maxsize=256)
def _num_pairs(grid: Grid, block: Grid, reach: Grid, density: float) -> int:
    tokens_J = _block_sizes(grid, block)
    seen_JU = seen_blocks(grid, block, reach, density)
    return int((tokens_J * tokens_J[seen_JU].sum(1)).sum())


def _block_sizes(grid: Grid, block: Grid) -> Tensor:
    """Tokens of each block (J,): fewer than `block` holds at the far edges."""
    axes = [
        [min(size, length - start) for start in range(0, length, size)]
        for length, size in zip(grid, block, strict=True)
    ]
    t, h, w = (torch.tensor(sizes, device="cpu") for sizes in axes)
    return (t[:, None, None] * h[:, None] * w).flatten()


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
    units_JU = seen_blocks(grid, block, reach, density)
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
