"""The local kinds on a GPU: FlexAttention (Dong et al. 2024), compiled, in the tiles' token order.

Tokens of a tile stand beside each other, so that the pairs of a tile and the keys it reads fill
whole blocks of the kernel, and all other blocks are left out. Not run yet: it awaits a GPU.

Shapes: B clips, N heads, L tokens, D head dim, J tiles, M queries a tile.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Sees = Callable[[Tensor, Tensor], Tensor]
LEAST_HEAD_DIM = 16  # FlexAttention takes no smaller one on a GPU


def takes_flex(v_BNLD: Tensor) -> bool:
    """Whether there is a kernel; other tensors take the tiles themselves."""
    return v_BNLD.device.type == "cuda" and v_BNLD.shape[-1] >= LEAST_HEAD_DIM


@dataclass(frozen=True, eq=False)
class FlexPlan:
    """What the kernel needs of a pattern on a grid."""

    order: Tensor
    """Tokens in the tiles' order, and"""
    inverse: Tensor
    """where each token went."""
    block_mask: BlockMask

    @classmethod
    def make(cls, place_L: Tensor, sees: Sees) -> Self:
        """From where the tiles put each token, and which pairs count."""
        order = place_L.argsort()
        length = len(order)

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return sees(order[query], order[key])

        block_mask = create_block_mask(mask, None, None, length, length, device=order.device)
        return cls(order, order.argsort(), block_mask)


def flex_attention_over(
    q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, scale: float, plan: FlexPlan
) -> Tensor:
    """Attention to the keys that the plan's pattern lets each query see; (B, N, L, D)."""
    q, k, v = (x.index_select(2, plan.order) for x in (q_BNLD, k_BNLD, v_BNLD))
    out: Tensor = _compiled()(q, k, v, block_mask=plan.block_mask, scale=scale)
    return out.index_select(2, plan.inverse)


@functools.lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)
