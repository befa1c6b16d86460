"""The local kinds on a GPU: FlexAttention (Dong et al. 2024), compiled, in the tiles' token order.

Tokens of a tile stand beside each other, so that the pairs of a tile and the keys it reads fill
whole blocks of the kernel, and all other blocks are left out. Not run yet: it awaits a GPU.

Shapes: B clips, N heads, L tokens, D head dim, J tiles, M queries a tile.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from distgan.attention.tiles import Tiles

LEAST_HEAD_DIM = 16  # FlexAttention takes no smaller one on a GPU


def takes_flex(v_BNLD: Tensor) -> bool:
    """Whether there is a kernel; other tensors take the tiles themselves."""
    return v_BNLD.device.type == "cuda" and v_BNLD.shape[-1] >= LEAST_HEAD_DIM


def flex_attention_over(
    q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, scale: float, tiles: Tiles
) -> Tensor:
    """Attention to the keys that `tiles` lets each query see; (B, N, L, D)."""
    order, inverse, block_mask = _plan(tiles)
    q, k, v = (x.index_select(2, order) for x in (q_BNLD, k_BNLD, v_BNLD))
    out: Tensor = _compiled()(q, k, v, block_mask=block_mask, scale=scale)
    return out.index_select(2, inverse)


@functools.lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


@functools.lru_cache(maxsize=64)
def _plan(tiles: Tiles) -> tuple[Tensor, Tensor, BlockMask]:
    """Order of the tokens, its inverse, and the blocks of pairs that are computed."""
    length, device = len(tiles.place_L), tiles.place_L.device
    order = tiles.place_L.argsort()
    inverse = order.argsort()
    seen_of = flex_mask(tiles)

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen_of(order[query], order[key])

    block_mask = create_block_mask(mask, None, None, length, length, device=device)
    return order, inverse, block_mask


def flex_mask(tiles: Tiles) -> Callable[[Tensor, Tensor], Tensor]:
    """Whether a query sees a key, from their numbers, by tables with one entry a tile and token."""
    num_tiles, num_queries = tiles.queries_JM.shape
    length, device = len(tiles.place_L), tiles.place_L.device
    tile_L, query_L = tiles.place_L // num_queries, tiles.place_L % num_queries
    if tiles.unit_is_tile:
        seen_JJ = torch.zeros(num_tiles, num_tiles, dtype=torch.bool, device=device)
        seen_JJ.scatter_(1, tiles.units_JU, True)
        return lambda query, key: seen_JJ[tile_L[query], tile_L[key]]
    # Where in the tile's list of read keys each token stands; -1: nowhere.
    rank_JL = torch.full((num_tiles, length), -1, dtype=torch.int32, device=device)
    ranks = torch.arange(tiles.num_read, dtype=torch.int32, device=device)
    rank_JL.scatter_(1, tiles.units_JU, ranks.expand(num_tiles, -1).contiguous())
    seen_JMR = tiles.seen_JMR

    def seen(query: Tensor, key: Tensor) -> Tensor:
        tile = tile_L[query]
        rank = rank_JL[tile, key]
        if seen_JMR is None:
            return rank >= 0
        return (rank >= 0) & seen_JMR[tile, query_L[query], rank.clamp(min=0)]

    return seen
