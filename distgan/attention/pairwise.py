"""Softmax attention over pairs of tokens: the formula, and its fast path where all pairs count.

Shapes: B clips, N heads, L tokens, D head dim. Scores of a query q and a key k, both (D,):

    dot: q k / sqrt(D)                       (Vaswani et al. 2017, equation 1)
    l2:  -(|q|^2 - 2 q k + |k|^2) / sqrt(D)  (Kim et al. 2021, equation 8, heads not tied)
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Scores = Literal["dot", "l2"]
LONGEST_PLAIN_SEQUENCE = 512  # tokens; at 1024 the fused kernel is nearly twice as fast
_twice = contextvars.ContextVar("twice_differentiable", default=False)


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """While inside, attention takes paths whose gradient has a gradient: no fused kernels."""
    token = _twice.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _twice.reset(token)


def needs_second_derivative() -> bool:
    """Whether `twice_differentiable` is on."""
    return _twice.get()


def reference_attention(
    q_BNLD: Tensor,
    k_BNLD: Tensor,
    v_BNLD: Tensor,
    scores: Scores = "dot",
    mask_LL: Tensor | None = None,
) -> Tensor:
    """The formula written out; fast paths must equal it.

    Args:
        mask_LL: True where a query (row) sees a key (column); None: everywhere.
    """
    return attention_weights(q_BNLD, k_BNLD, scores, mask_LL) @ v_BNLD


def attention_weights(
    q_BNQD: Tensor, k_BNLD: Tensor, scores: Scores = "dot", mask_QL: Tensor | None = None
) -> Tensor:
    """(B, N, Q, L): how much each query takes of each key; rows sum to 1."""
    products = q_BNQD @ k_BNLD.transpose(-1, -2)
    if scores == "l2":
        squares_Q1 = q_BNQD.square().sum(-1, keepdim=True)
        squares_1L = k_BNLD.square().sum(-1)[..., None, :]
        products = -(squares_Q1 - 2 * products + squares_1L)
    logits = products / q_BNQD.shape[-1] ** 0.5
    if mask_QL is not None:
        logits = logits.masked_fill(~mask_QL, -torch.inf)
    return logits.softmax(dim=-1)


def wide(tensor: Tensor) -> torch.dtype:
    """The type for sums and exponentials: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def fast_attention(
    q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, scores: Scores = "dot"
) -> Tensor:
    """The same over all pairs by a fused kernel, except for short bf16 sequences on a CPU: there
    the plain products take 0.3 to 0.5 of its time (`python -m benchmarks attention --short`)."""
    on_cpu_in_bf16 = q_BNLD.device.type == "cpu" and q_BNLD.dtype == torch.bfloat16
    if on_cpu_in_bf16 and q_BNLD.shape[2] <= LONGEST_PLAIN_SEQUENCE:
        return reference_attention(q_BNLD, k_BNLD, v_BNLD, scores)
    if scores == "dot":
        return F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD)
    head_dim = q_BNLD.shape[-1]
    q, k = as_dot_products(q_BNLD, k_BNLD, scores)
    v = F.pad(v_BNLD, (0, q.shape[-1] - head_dim))  # fused kernels want equal widths
    return F.scaled_dot_product_attention(q, k, v, scale=head_dim**-0.5)[..., :head_dim]


def as_dot_products(q: Tensor, k: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """Queries and keys whose products, over sqrt(D), have the softmax of these scores.

    For l2 one more channel holds -|k|^2; |q|^2 is the same for all keys of a query and falls out of
    the softmax. D is taken off |k|^2, for all keys alike: normalised keys have about that, and less
    is lost in bf16. The width stays a multiple of 8, as fused kernels want it.
    """
    if scores == "dot":
        return q, k
    head_dim = q.shape[-1]
    extra = 8 - head_dim % 8
    norms = head_dim - k.to(wide(k)).square().sum(-1, keepdim=True)
    norms = norms.to(k.dtype)
    k = F.pad(torch.cat((k, norms), dim=-1), (0, extra - 1))
    return F.pad(torch.cat((2 * q, torch.ones_like(norms)), dim=-1), (0, extra - 1)), k
