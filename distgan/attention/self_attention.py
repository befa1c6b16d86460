"""Attention over all pairs: `self` with several heads, `dense` with one; the base of local kinds.

Shapes: B clips, L tokens of a grid (T, H, W), N heads, D head dim, E width, Q chosen queries.
"""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from distgan.attention.pairwise import (
    Scores,
    as_dot_products,
    attention_weights,
    fast_attention,
)
from distgan.attention.positions import rotary_angles, rotate
from distgan.sparsity import Grid


class SelfAttention(nn.Module):
    """Multi-head attention over all pairs of tokens.

    Positions are rotary. Query-key normalisation (Henry et al. 2020) bounds dot scores; l2 has
    none: between vectors of one length a distance is a product at another temperature. No biases:
    the gradient of a key bias is zero in theory (for dot) and rounding noise in fact.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        scores: Scores = "dot",
        positions: Literal["rotary", "none"] = "rotary",
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.scores: Scores = scores
        self.positions = positions
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        dot = scores == "dot"
        self.query_norm = nn.RMSNorm(head_dim, eps=1e-6) if dot else nn.Identity()
        self.key_norm = nn.RMSNorm(head_dim, eps=1e-6) if dot else nn.Identity()
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, tokens_BLE: Tensor, grid: Grid) -> Tensor:
        q, k, v = self.heads_of(tokens_BLE, grid)
        return self.out(self.attend(q, k, v, grid).transpose(1, 2).flatten(2))

    def attend(self, q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, grid: Grid) -> Tensor:
        """The fast path, from heads to heads."""
        return fast_attention(q_BNLD, k_BNLD, v_BNLD, self.scores)

    def mask(self, grid: Grid, places_Q: Tensor) -> Tensor | None:
        """(Q, L) bool by the kind's definition: the keys that tokens see; None: all of them.

        Args:
            places_Q: numbers of tokens.
        """
        return None

    def num_pairs(self, grid: Grid) -> int:
        """Pairs of a query and a key that it sees: the True places of all tokens' `mask`."""
        return math.prod(grid) ** 2

    def kept_for_backward(
        self, q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `attend` keeps of its inputs for the backward pass, or tensors of these shapes."""
        q, k, _ = as_dot_products(q_BNLD, k_BNLD, self.scores)
        padding = q.shape[-1] - self.head_dim
        return q, k, F.pad(v_BNLD, (0, padding)) if padding else v_BNLD

    def heads_of(self, tokens_BLE: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (normalised, for dot, and rotated) and values, each (B, N, L, D)."""
        batch, length, _ = tokens_BLE.shape
        qkv = self.qkv(tokens_BLE).view(batch, length, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = self.query_norm(q.float()), self.key_norm(k.float())
        if self.positions == "rotary":
            cos_LP, sin_LP = rotary_angles(grid, self.head_dim, tokens_BLE.device)
            q, k = rotate(q, cos_LP, sin_LP), rotate(k, cos_LP, sin_LP)
        return q.to(v.dtype), k.to(v.dtype), v

    def looks(
        self,
        tokens_BLE: Tensor,
        grid: Grid,
        places_Q: Tensor,
        mask_QL: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """How much chosen tokens take of each token: (B, N, Q, L), rows sum to 1.

        Args:
            places_Q: numbers of tokens.
            mask_QL: what they see, in place of the kind's own.
        """
        q, k, _ = self.heads_of(tokens_BLE, grid)
        if mask_QL is None:
            mask_QL = self.mask(grid, places_Q)
        chosen = q[:, :, places_Q]
        return {"": attention_weights(chosen.float(), k.float(), self.scores, mask_QL)}
