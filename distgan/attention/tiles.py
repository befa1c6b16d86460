"""Attention in which tiles of queries share the keys that they read: dense products of gathered
blocks, so that compute and memory shrink with what is seen, on any device.

Shapes: B clips, N heads, G = B*N, L tokens, D head dim, J tiles, M queries a tile, U units of keys
and R keys that a tile reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distgan.attention.pairwise import needs_second_derivative, wide
from distgan.sparsity import Grid

CHUNK_ELEMENTS = 1 << 21  # floats of gathered keys, values and scores at a time: stays near caches


@dataclass(frozen=True, eq=False, kw_only=True)
class Tiles:
    """Which keys each tile of queries reads, and which of these each query sees."""

    queries_JM: Tensor
    """Tokens, by number. Tiles at an edge repeat tokens where there are no more."""
    stand_in_JM: Tensor | None
    """True for such repeats; None if there are none."""
    units_JU: Tensor
    """Units of keys that the tile reads: tokens, or whole tiles."""
    unit_is_tile: bool
    seen_JMR: Tensor | None
    """Of the keys read, those that a query sees (M may be 1: all alike); None: all."""
    place_L: Tensor
    """Where in the flattened `queries_JM` each token stands (not as a stand-in)."""

    @property
    def num_read(self) -> int:
        """Keys that a tile reads."""
        return self.units_JU.shape[1] * (self.queries_JM.shape[1] if self.unit_is_tile else 1)

    @property
    def num_computed(self) -> int:
        """Pairs that are computed, seen or not."""
        return self.queries_JM.numel() * self.num_read


def place_of_each(queries_JM: Tensor, stand_in_JM: Tensor) -> Tensor:
    """`Tiles.place_L`."""
    places = (~stand_in_JM.flatten()).nonzero()[:, 0]
    place_L = torch.empty_like(places)
    place_L[queries_JM.flatten()[places]] = places
    return place_L


def combine(grid: Grid, *axes: Tensor) -> Tensor:
    """Numbers of tokens (n, m) from their places along the three axes, each (n_axis, m_axis)."""
    t, h, w = axes
    parts = t * grid[1] * grid[2], h * grid[2], w
    t, h, w = (part.view(_spread(part.shape, axis)) for axis, part in enumerate(parts))
    whole = t + h + w
    return whole.flatten(3).flatten(0, 2)


def outer(*axes: Tensor) -> Tensor:
    """Logical and of three bool tables (n_axis, ...), their dimensions combined pairwise."""
    t, h, w = (table.view(_spread(table.shape, axis)) for axis, table in enumerate(axes))
    whole = t & h & w
    for start in range(whole.ndim // 3):
        whole = whole.flatten(start, start + 2)
    return whole


def _spread(shape: torch.Size, axis: int) -> list[int]:
    """(a, b) to (1, a, 1, 1, b, 1) for axis 1: so that three of them broadcast."""
    return [size if other == axis else 1 for size in shape for other in range(3)]


def tiled_attention(q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, tiles: Tiles) -> Tensor:
    """Attention to the keys that `tiles` lets each query see; (B, N, L, D of v).

    Scores are products of q and k as they are: scaled by the caller.
    """
    q_GLD, k_GLD, v_GLD = (x.flatten(0, 1) for x in (q_BNLD, k_BNLD, v_BNLD))
    if needs_second_derivative():
        out_GLD = _attend_all(q_GLD, k_GLD, v_GLD, tiles)
    else:
        out_GLD = _TiledAttention.apply(q_GLD, k_GLD, v_GLD, tiles)
    return out_GLD.view(v_BNLD.shape)


def _attend_all(q_GLD: Tensor, k_GLD: Tensor, v_GLD: Tensor, tiles: Tiles) -> Tensor:
    """All tiles at once, in plain operations: differentiable any number of times."""
    whole = slice(0, len(tiles.units_JU))
    q_GJMD = _tiled(q_GLD, tiles)
    weights = _logits(q_GJMD, _read(_as_units(k_GLD, tiles), tiles, whole), tiles, whole).softmax(
        -1
    )
    out_GJMD = weights.to(v_GLD.dtype) @ _read(_as_units(v_GLD, tiles), tiles, whole)
    return _untiled(out_GJMD, tiles)


class _TiledAttention(torch.autograd.Function):
    """A few tiles at a time, forward and backward, as FlashAttention (Dao et al. 2022) does it:
    the weights are computed again in the backward pass, and never stored."""

    @staticmethod
    def forward(ctx: Any, q_GLD: Tensor, k_GLD: Tensor, v_GLD: Tensor, tiles: Tiles) -> Tensor:
        q_GJMD = _tiled(q_GLD, tiles)
        k_units, v_units = _as_units(k_GLD, tiles), _as_units(v_GLD, tiles)
        out_GJMD = q_GJMD.new_empty(*q_GJMD.shape[:3], v_GLD.shape[-1])
        log_sums_GJM = torch.empty(q_GJMD.shape[:3], device=q_GLD.device, dtype=wide(q_GLD))
        for some in _chunks(q_GJMD, tiles):
            logits = _logits(q_GJMD[:, some], _read(k_units, tiles, some), tiles, some)
            largest = logits.amax(dim=-1, keepdim=True)
            weights = logits.sub_(largest).exp_()
            sums = weights.sum(dim=-1, keepdim=True)
            log_sums_GJM[:, some] = (largest + sums.log())[..., 0]
            mixed = weights.to(v_GLD.dtype) @ _read(v_units, tiles, some)
            out_GJMD[:, some] = (mixed / sums).to(v_GLD.dtype)
        out_GLD = _untiled(out_GJMD, tiles)
        ctx.save_for_backward(q_GLD, k_GLD, v_GLD, out_GLD, log_sums_GJM)
        ctx.tiles = tiles
        return out_GLD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GLD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_GLD, k_GLD, v_GLD, out_GLD, log_sums_GJM = ctx.saved_tensors
        tiles: Tiles = ctx.tiles
        q_GJMD, grad_GJMD = _tiled(q_GLD, tiles), _tiled(grad_GLD.contiguous(), tiles)
        shared_GLD = (grad_GLD.to(wide(q_GLD)) * out_GLD).sum(-1, keepdim=True)
        shared_GJM1 = _tiled(shared_GLD, tiles)
        if tiles.stand_in_JM is not None:
            stand_in = tiles.stand_in_JM[None, ..., None]
            grad_GJMD = grad_GJMD.masked_fill(stand_in, 0)
            shared_GJM1 = shared_GJM1.masked_fill(stand_in, 0)
        k_units, v_units = _as_units(k_GLD, tiles), _as_units(v_GLD, tiles)
        dq_GJMD = torch.empty_like(q_GJMD)
        dk_units = torch.zeros_like(k_units, dtype=wide(q_GLD))
        dv_units = torch.zeros_like(v_units, dtype=wide(q_GLD))
        for some in _chunks(q_GJMD, tiles):
            q, grad, k = q_GJMD[:, some], grad_GJMD[:, some], _read(k_units, tiles, some)
            logits = _logits(q, k, tiles, some)
            weights = logits.sub_(log_sums_GJM[:, some, :, None]).exp_()
            _add(dv_units, weights.to(grad.dtype).transpose(-1, -2) @ grad, tiles, some)
            d_weights = (grad @ _read(v_units, tiles, some).transpose(-1, -2)).to(weights.dtype)
            d_logits = d_weights.sub_(shared_GJM1[:, some]).mul_(weights).to(q.dtype)
            dq_GJMD[:, some] = d_logits @ k
            _add(dk_units, d_logits.transpose(-1, -2) @ q, tiles, some)
        dk_GLD, dv_GLD = _from_units(dk_units, tiles), _from_units(dv_units, tiles)
        return _untiled(dq_GJMD, tiles), dk_GLD.to(k_GLD.dtype), dv_GLD.to(v_GLD.dtype), None


def _chunks(q_GJMD: Tensor, tiles: Tiles) -> Iterator[slice]:
    groups, num_tiles, num_queries, head_dim = q_GJMD.shape
    one = groups * tiles.num_read * (2 * head_dim + 2 * num_queries)
    step = max(1, CHUNK_ELEMENTS // one)
    return (slice(start, start + step) for start in range(0, num_tiles, step))


def _logits(q_GJMD: Tensor, k_GJRD: Tensor, tiles: Tiles, some: slice) -> Tensor:
    logits = (q_GJMD @ k_GJRD.transpose(-1, -2)).to(wide(q_GJMD))
    if tiles.seen_JMR is None:
        return logits
    return logits.masked_fill_(~tiles.seen_JMR[some], -torch.inf)


def _tiled(x_GLD: Tensor, tiles: Tiles) -> Tensor:
    """(G, L, D) to (G, J, M, D)."""
    return x_GLD.index_select(1, tiles.queries_JM.flatten()).unflatten(1, tiles.queries_JM.shape)


def _untiled(x_GJMD: Tensor, tiles: Tiles) -> Tensor:
    """Back, without the stand-ins."""
    return x_GJMD.flatten(1, 2).index_select(1, tiles.place_L)


def _as_units(x_GLD: Tensor, tiles: Tiles) -> Tensor:
    """(G, units, values of one)."""
    return _tiled(x_GLD, tiles).flatten(2) if tiles.unit_is_tile else x_GLD.contiguous()


def _from_units(x: Tensor, tiles: Tiles) -> Tensor:
    """Back to (G, L, D)."""
    if not tiles.unit_is_tile:
        return x
    num_tiles, num_queries = tiles.queries_JM.shape
    return _untiled(x.view(len(x), num_tiles, num_queries, -1), tiles)


def _read(units: Tensor, tiles: Tiles, some: slice) -> Tensor:
    """What some tiles read: (G, tiles, R, D)."""
    wanted = tiles.units_JU[some]
    read = units.index_select(1, wanted.flatten())
    return read.view(len(units), len(wanted), tiles.num_read, -1)


def _add(units: Tensor, x_GJRD: Tensor, tiles: Tiles, some: slice) -> None:
    """The transpose of `_read`: adds what tiles give to the units they read."""
    wanted = tiles.units_JU[some].flatten()
    source = x_GJRD.reshape(len(units), len(wanted), -1).to(units.dtype)
    units.index_add_(1, wanted, source)
