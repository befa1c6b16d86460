"""What the kinds that see a part of the tokens share. B clips, N heads, L tokens, D head dim."""

import math

import torch
from torch import Tensor

from distgan.attention.flex import FlexPlan, Sees, flex_attention_over, takes_flex
from distgan.attention.pairwise import as_dot_products, needs_second_derivative
from distgan.attention.self_attention import SelfAttention
from distgan.attention.tiles import Tiles, tiled_attention
from distgan.config import AttentionConfig
from distgan.sparsity import Grid

MOST_PLANS = 4  # grids of one layer: training has one, and sampling rarely others


class LocalAttention(SelfAttention):
    """Attention to the keys that `mask` defines, computed by `tiles`, or on a GPU by FlexAttention
    with the tiles' order of tokens."""

    def __init__(self, width: int, head_dim: int, config: AttentionConfig) -> None:
        super().__init__(width, config.heads, head_dim, config.scores, config.positions)
        self._plans: dict[tuple[Grid, torch.device], FlexPlan] = {}

    def tiles(self, grid: Grid, device: torch.device) -> Tiles:
        """What each tile of queries reads and sees."""
        raise NotImplementedError

    def sees(self, grid: Grid, device: torch.device) -> Sees:
        """The kind's definition: whether queries see keys, both given by their numbers."""
        raise NotImplementedError

    def mask(self, grid: Grid, places_Q: Tensor) -> Tensor:
        key_L = torch.arange(math.prod(grid), device=places_Q.device)
        return self.sees(grid, places_Q.device)(places_Q[:, None], key_L)

    def flex_plan(self, grid: Grid, device: torch.device) -> FlexPlan:
        """For `flex_attention_over`; the last few grids' are kept."""
        key = (grid, device)
        if key not in self._plans:
            if len(self._plans) == MOST_PLANS:
                del self._plans[next(iter(self._plans))]  # the oldest
            place_L = self.tiles(grid, device).place_L
            self._plans[key] = FlexPlan.make(place_L, self.sees(grid, device))
        return self._plans[key]

    def attend(self, q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, grid: Grid) -> Tensor:
        q, k, scale = as_dot_products(q_BNLD, k_BNLD, self.scores)
        if takes_flex(v_BNLD) and not needs_second_derivative():
            return flex_attention_over(q, k, v_BNLD, scale, self.flex_plan(grid, v_BNLD.device))
        tiles = self.tiles(grid, v_BNLD.device)
        return tiled_attention(q if scale == 1 else q * scale, k, v_BNLD, tiles)

    def kept_for_backward(
        self, q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, _ = as_dot_products(q_BNLD, k_BNLD, self.scores)
        return q, k, v_BNLD.flatten(0, 1)
