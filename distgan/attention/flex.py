"""The local kinds on a GPU: FlexAttention (Dong et al. 2024), compiled, in the tiles' token order.

Tokens of a tile stand beside each other, so that the pairs of a tile and the keys it reads fill
whole blocks of the kernel, and all other blocks are left out. Not run yet: it awaits a GPU.

Shapes: B clips, N heads, L tokens, D head dim, J tiles, K blocks, M tokens of one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

Sees = Callable[[Tensor, Tensor], Tensor]
LEAST_HEAD_DIM = 16  # FlexAttention takes no smaller one on a GPU
BLOCK = 128  # tokens of the kernel's blocks
MOST_KERNELS = 64  # of one process: a few shapes of a few levels


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

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return sees(order[query], order[key])

        some_KK, all_KK = block_tables(order, sees)
        block_mask = BlockMask.from_kv_blocks(
            *_listed(some_KK & ~all_KK),
            *_listed(all_KK),
            BLOCK_SIZE=BLOCK,
            mask_mod=mask,
            seq_lengths=(len(order), len(order)),
        )
        return cls(order, order.argsort(), block_mask)


def block_tables(order: Tensor, sees: Sees) -> tuple[Tensor, Tensor]:
    """Whether the queries of a block see some keys of a block, and whether all see all of them.

    (K, K) bool each. Made a row of blocks at a time: PyTorch's own `create_block_mask` holds L x L
    numbers, 34 GiB of them at 65,536 tokens. A block that stands out over the end is never full.
    """
    some, every = [], []
    missing = -len(order) % BLOCK
    for query in order.split(BLOCK):
        seen_QL = F.pad(sees(query[:, None], order[None]), (0, missing))
        seen_QKM = seen_QL.unflatten(1, (-1, BLOCK))
        some.append(seen_QKM.any(2).any(0))
        every.append(seen_QKM.all(2).all(0) & (len(query) == BLOCK))
    return torch.stack(some), torch.stack(every)


def _listed(blocks_KK: Tensor) -> tuple[Tensor, Tensor]:
    """The number of each row's True places (1, 1, K), and all places, these first (1, 1, K, K)."""
    places = blocks_KK.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_KK.sum(-1).int()[None, None], places.int()[None, None]


def flex_attention_over(
    q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, scale: float, plan: FlexPlan
) -> Tensor:
    """Attention to the keys that the plan's pattern lets each query see; (B, N, L, D)."""
    q, k, v = (x.index_select(2, plan.order) for x in (q_BNLD, k_BNLD, v_BNLD))
    out: Tensor = _compiled()(q, k, v, block_mask=plan.block_mask, scale=scale)
    return out.index_select(2, plan.inverse)


@functools.lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    return compiled_for_each_shape(flex_attention)


def compiled_for_each_shape(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """With up to `MOST_KERNELS` kernels.

    By fullgraph one more is an error; without it PyTorch would silently go on uncompiled, which
    here stores all L x L scores.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_KERNELS)
    return torch.compile(function, dynamic=False, fullgraph=True, **options)
