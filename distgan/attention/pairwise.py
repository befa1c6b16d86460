"""Softmax attention over pairs of tokens: the formula, and its fast path where all pairs count.

Shapes: B clips, N heads, L tokens, D head dim. Scores of a query q and a key k, both (D,):

    dot: q k / sqrt(D)                       (Vaswani et al. 2017, equation 1)
    l2:  -|q - k|^2 / sqrt(D)                (Kim et al. 2021, equation 8, weights not tied)
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
    """The same over all pairs by a fused kernel, except for dot on short bf16 sequences on a CPU:
    there the plain products take 0.3 to 0.5 of its time (`python -m benchmarks attention --short`).
    """
    on_cpu_in_bf16 = q_BNLD.device.type == "cpu" and q_BNLD.dtype == torch.bfloat16
    if scores == "dot":
        if on_cpu_in_bf16 and q_BNLD.shape[2] <= LONGEST_PLAIN_SEQUENCE:
            return reference_attention(q_BNLD, k_BNLD, v_BNLD)
        return F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD)
    head_dim = v_BNLD.shape[-1]
    q, k, scale = as_dot_products(q_BNLD, k_BNLD, scores)
    v = F.pad(v_BNLD, (0, q.shape[-1] - head_dim))  # fused kernels want equal widths
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :head_dim]


def as_dot_products(q: Tensor, k: Tensor, scores: Scores) -> tuple[Tensor, Tensor, float]:
    """Queries, keys and a factor: the products times it are these scores.

    For l2, 4 more channels add -|q|^2 and -|k|^2 to 2 q k. Of pairs that are near, and count, these
    nearly cancel: so each is held in two numbers, which are exact enough in bf16 too, and the scale
    is applied before they are taken, for it would round them. The width becomes a multiple of 8, as
    fused kernels want it.
    """
    head_dim = q.shape[-1]
    if scores == "dot":
        return q, k, head_dim**-0.5
    q, k = q * head_dim**-0.25, k * head_dim**-0.25
    # |q|^2 is the same for all keys of a query: it has no gradient through the softmax.
    q_square, k_square = _minus_square(q.detach()), _minus_square(k)
    padding = (0, -(head_dim + 4) % 8)
    q = F.pad(torch.cat((2 * q, torch.ones_like(k_square), q_square), dim=-1), padding)
    k = F.pad(torch.cat((k, k_square, torch.ones_like(q_square)), dim=-1), padding)
    return q, k, 1.0


def _minus_square(x: Tensor) -> Tensor:
    """-|x|^2 (..., 2) as a sum of two numbers: rounded to x's type, and the rest."""
    whole = -x.to(wide(x)).square().sum(-1, keepdim=True)
    rounded = whole.to(x.dtype)
    return torch.cat((rounded, (whole - rounded).to(x.dtype)), dim=-1)
