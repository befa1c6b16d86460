"""The l2 scores are distances: in every kind, in bf16, and nothing that dot could be."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distgan.attention import ATTENTION_KINDS, Grid, SelfAttention, attention_weights
from distgan.attention.pairwise import fast_attention
from tests.test_attention_kinds import assert_all_close, built, draws, outputs_and_gradients

MIXING = sorted(set(ATTENTION_KINDS) - {"additive"})
GRID: Grid = (4, 4, 4)


def distances_taken_one_by_one(part: SelfAttention) -> None:
    """Puts the definition in the place of the fast path; the factorised kind's parts get grids of
    their own, on which all see all."""

    def attend(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        squares = (q[:, :, :, None] - k[:, :, None]).square().sum(-1)
        logits = -squares / q.shape[-1] ** 0.5
        mask = part.mask(grid, torch.arange(math.prod(grid)))
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        return logits.softmax(-1) @ v

    part.attend = attend  # type: ignore[method-assign]


@pytest.mark.parametrize("head_dim", [4, 6, 8])
@pytest.mark.parametrize("kind", MIXING)
def test_each_kind_mixes_by_distances_and_so_do_its_gradients(kind: str, head_dim: int) -> None:
    mixes = [built(kind, scores="l2", head_dim=head_dim, window=(3, 3, 1)) for _ in range(2)]
    for part in mixes[1].modules():
        if isinstance(part, SelfAttention):
            distances_taken_one_by_one(part)
    fast, written_out = (
        outputs_and_gradients(lambda x, mix=mix: mix(x, GRID), [draws(2, 64, 8)]) for mix in mixes
    )
    assert_all_close(fast, written_out, 2e-5)
    for mix in mixes:
        mix(draws(2, 64, 8), GRID).square().sum().backward()
    for one, other in zip(*(mix.parameters() for mix in mixes), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def residual_of_dot(part: SelfAttention) -> float:
    """What the best temperature of dot leaves unexplained of the logarithms of a layer's weights:
    the share of their deviation, from 0 (it is dot) to 1."""
    q, k, _ = part.heads_of(draws(2, 64, 8), GRID)
    logs = attention_weights(q, k, part.scores).log()
    products = q @ k.transpose(-1, -2)
    logs, products = (x - x.mean(-1, keepdim=True) for x in (logs, products))
    slope = (logs * products).sum() / products.square().sum()
    return ((logs - slope * products).norm() / logs.norm()).item()


def test_it_is_not_dot_at_another_temperature() -> None:
    part: SelfAttention = built("self", scores="l2")
    assert residual_of_dot(part) > 0.3
    # With normalised keys it would be.
    part.query_norm, part.key_norm = nn.RMSNorm(6, eps=1e-6), nn.RMSNorm(6, eps=1e-6)
    assert residual_of_dot(part) < 1e-4
    assert residual_of_dot(built("self", scores="dot")) < 0.01


@pytest.mark.parametrize("kind", MIXING)
def test_it_has_no_norms(kind: str) -> None:
    names = {name for name, _ in built(kind, scores="l2").named_parameters()}
    assert names and {name.rpartition(".")[0].rpartition(".")[2] for name in names} == {
        "qkv", "out",
    }  # fmt: skip
    assert any("norm" in name for name, _ in built(kind).named_parameters())


@pytest.mark.parametrize("kind", ["self", "window", "sparse"])
def test_bf16_knows_near_vectors_apart_that_are_far_from_zero(kind: str) -> None:
    """Moving all queries and keys alike changes no distance; the squares lose it to rounding if
    they are held in one bf16 number. Here all vectors are bf16 numbers before and after."""
    mix = built(kind, scores="l2", head_dim=16, density=1.0, window=(0, 0, 0))
    q, k = (draws(1, 2, 64, 16, seed=seed).mul(4).round().clamp(-8, 8) / 8 for seed in (0, 1))
    v = draws(1, 2, 64, 16, seed=2)
    wanted = fast_attention(q.double(), k.double(), v.double(), "l2")
    for moved in (0, 8):
        low = ((x + moved).bfloat16() for x in (q, k))
        assert all(((x + moved).bfloat16().float() == x + moved).all() for x in (q, k))
        got = mix.attend(*low, v.bfloat16(), GRID)
        assert (got.double() - wanted).norm() < 0.02 * wanted.norm(), moved


def test_long_keys_are_left_alone() -> None:
    """What dot can't say: a key as long as ten others is no one's nearest."""
    q = draws(1, 1, 64, 8)
    k = q.clone()
    k[:, :, 5] *= 10
    options: list[Any] = [("dot", True), ("l2", False)]
    for scores, attracts in options:
        taken = attention_weights(q, k, scores)[0, 0, :, 5]
        assert (taken.max() > 0.9) == attracts
