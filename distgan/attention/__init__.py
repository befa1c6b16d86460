"""Attention as an exchangeable part: tokens in, tokens out, the space-time grid known.

Each kind maps `tokens_BLE` on a grid (T, H, W) to `tokens_BLE`; `ATTENTION_KINDS` is the switch.
"""

from distgan.attention.factorised import FactorisedAttention
from distgan.attention.layers import ATTENTION_KINDS, AttentionLayer, MlpLayer, attention_at
from distgan.attention.pairwise import (
    LONGEST_PLAIN_SEQUENCE,
    attention_weights,
    fast_attention,
    reference_attention,
    twice_differentiable,
)
from distgan.attention.self_attention import SelfAttention
from distgan.sparsity import Grid

__all__ = [
    "ATTENTION_KINDS",
    "LONGEST_PLAIN_SEQUENCE",
    "AttentionLayer",
    "FactorisedAttention",
    "Grid",
    "MlpLayer",
    "SelfAttention",
    "attention_at",
    "attention_weights",
    "fast_attention",
    "reference_attention",
    "twice_differentiable",
]
