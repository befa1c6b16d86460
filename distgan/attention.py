"""Attention as an exchangeable part: tokens in, tokens out, the space-time grid known.

Shapes: B clips, C channels, T frames, H, W, L = T*H*W tokens, N heads, D head dim, E width.
Each kind maps `tokens_BLE` on a grid (T, H, W) to `tokens_BLE`; `ATTENTION_KINDS` is the switch.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.blocks import normalise_channels
from distgan.config import AttentionConfig

Grid = tuple[int, int, int]
ROTARY_BASE = 100.0  # wavelengths from 2 pi to about 600 cells: grids are tens of cells long
LONGEST_PLAIN_SEQUENCE = 512  # tokens; at 1024 the fused kernel is nearly twice as fast


@functools.lru_cache(maxsize=64)
def rotary_angles(grid: Grid, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, D/2) of rotary positions (RoFormer, Su et al. 2021) in three axes.

    The D/2 channel pairs are dealt to time, height and width in turn.
    """
    pairs = torch.arange(head_dim // 2)
    axis_of_pair, rank = pairs % 3, pairs // 3
    num_ranks = max((head_dim // 2 + 2) // 3, 1)
    frequency = ROTARY_BASE ** (-rank.double() / num_ranks)
    axes = [torch.arange(length, dtype=torch.float64) for length in grid]
    positions_L3 = torch.cartesian_prod(*axes).reshape(-1, 3)
    angles = positions_L3[:, axis_of_pair] * frequency
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x_BNLD: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    """Turns each channel pair (first half, second half) by its position's angle."""
    first, second = x_BNLD.chunk(2, dim=-1)
    cos_LP, sin_LP = cos_LP.to(x_BNLD.dtype), sin_LP.to(x_BNLD.dtype)
    return torch.cat((first * cos_LP - second * sin_LP, second * cos_LP + first * sin_LP), dim=-1)


def reference_attention(q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor) -> Tensor:
    """Softmax attention written out (Vaswani et al. 2017, equation 1); fast paths must equal it."""
    scores = q_BNLD @ k_BNLD.transpose(-1, -2) / q_BNLD.shape[-1] ** 0.5
    return scores.softmax(dim=-1) @ v_BNLD


def fast_attention(q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor) -> Tensor:
    """The same by a fused kernel, except for short bf16 sequences on a CPU: there the plain matrix
    products take 0.3 to 0.5 of its time (`python -m benchmarks attention`)."""
    on_cpu_in_bf16 = q_BNLD.device.type == "cpu" and q_BNLD.dtype == torch.bfloat16
    if on_cpu_in_bf16 and q_BNLD.shape[2] <= LONGEST_PLAIN_SEQUENCE:
        return reference_attention(q_BNLD, k_BNLD, v_BNLD)
    return F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD)


class SelfAttention(nn.Module):
    """Multi-head attention over all pairs of tokens, with normalised queries and keys.

    Query-key normalisation (Henry et al. 2020) bounds the scores; positions are rotary. No biases:
    the gradient of a key bias is zero in theory and rounding noise in fact.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.query_norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.key_norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, tokens_BLE: Tensor, grid: Grid) -> Tensor:
        q, k, v = self.heads_of(tokens_BLE, grid)
        return self.out(fast_attention(q, k, v).transpose(1, 2).flatten(2))

    def heads_of(self, tokens_BLE: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (normalised and rotated) and values, each (B, N, L, D)."""
        batch, length, _ = tokens_BLE.shape
        qkv = self.qkv(tokens_BLE).view(batch, length, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        cos_LP, sin_LP = rotary_angles(grid, self.head_dim, tokens_BLE.device)
        q = rotate(self.query_norm(q.float()), cos_LP, sin_LP).to(v.dtype)
        k = rotate(self.key_norm(k.float()), cos_LP, sin_LP).to(v.dtype)
        return q, k, v


def _build_self(width: int, config: AttentionConfig) -> nn.Module:
    return SelfAttention(width, config.heads, config.head_dim or width // config.heads)


ATTENTION_KINDS: dict[str, Callable[[int, AttentionConfig], nn.Module]] = {"self": _build_self}


class AttentionLayer(nn.Module):
    """A residual attention step on feature maps (B, T, H, W, C)."""

    def __init__(self, width: int, config: AttentionConfig) -> None:
        super().__init__()
        self.mix = ATTENTION_KINDS[config.kind](width, config)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        _, frames, height, width, _ = x_BTHWC.shape
        tokens_BLE = normalise_channels(x_BTHWC).flatten(1, 3)
        mixed_BLE = self.mix(tokens_BLE, (frames, height, width))
        return x_BTHWC + mixed_BLE.view(x_BTHWC.shape)


def attention_at(resolution: int, width: int, config: AttentionConfig) -> list[nn.Module]:
    """The attention layers of a level with feature maps of this height: one, or none."""
    if config.kind == "none" or resolution not in config.resolutions:
        return []
    return [AttentionLayer(width, config)]
