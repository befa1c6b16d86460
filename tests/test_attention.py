"""Attention: the fast path equals the written-out one, and what positions do to it."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from distgan.attention import (
    LONGEST_PLAIN_SEQUENCE,
    AttentionLayer,
    Grid,
    SelfAttention,
    attention_at,
    fast_attention,
    reference_attention,
)
from distgan.attention.positions import rotary_angles, rotate
from distgan.blocks import initialise
from distgan.config import AttentionConfig
from tests.tiny_networks import CPU, tiny_config, tiny_step

SHAPES = [(1, 1, 1, 2), (2, 3, 7, 4), (1, 2, 64, 16), (3, 1, 100, 6)]


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def written_out(q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor) -> Tensor:
    """One query at a time, in float64, sharing nothing with the code under test."""
    out = torch.zeros_like(v_BNLD, dtype=torch.float64)
    q, k, v = q_BNLD.double(), k_BNLD.double(), v_BNLD.double()
    for place in range(q.shape[2]):
        weights = torch.exp((q[:, :, place, None] * k).sum(-1) / q.shape[-1] ** 0.5)
        out[:, :, place] = (weights[..., None] * v).sum(2) / weights.sum(-1, keepdim=True)
    return out


def with_gradients(kind: object, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = kind(*leaves)  # type: ignore[operator]
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str
)
def test_both_paths_equal_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    inputs = [draws(*shape, seed=seed, dtype=dtype) for seed in range(3)]
    upstream = draws(*shape, seed=3, dtype=dtype)
    expected = with_gradients(written_out, inputs, upstream)
    for path in (reference_attention, fast_attention):
        for got, wanted in zip(with_gradients(path, inputs, upstream), expected, strict=True):
            torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("length", [64, LONGEST_PLAIN_SEQUENCE + 8])
def test_bf16_stays_near_float32_on_both_sides_of_the_switch(length: int) -> None:
    inputs = [draws(1, 1, length, 8, seed=seed) for seed in range(3)]
    upstream = draws(1, 1, length, 8, seed=3)
    expected = with_gradients(reference_attention, inputs, upstream)
    low = [tensor.bfloat16() for tensor in inputs]
    for got, wanted in zip(with_gradients(fast_attention, low, upstream), expected, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - wanted).norm() < 0.02 * wanted.norm()


def layer(width: int = 8, heads: int = 2, head_dim: int = 6) -> SelfAttention:
    attention = SelfAttention(width, heads, head_dim)
    initialise(attention, 0, "test")
    return attention


def without_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    def unturned(grid: Grid, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
        length = grid[0] * grid[1] * grid[2]
        return torch.ones(length, head_dim // 2), torch.zeros(length, head_dim // 2)

    monkeypatch.setattr("distgan.attention.self_attention.rotary_angles", unturned)


def test_without_positions_tokens_may_be_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, tokens = layer(), draws(2, 24, 8)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    with_positions = attention(tokens[:, order], (2, 3, 4)) - attention(tokens, (2, 3, 4))[:, order]
    assert with_positions.abs().max() > 1e-2  # positions are felt
    without_positions(monkeypatch)
    torch.testing.assert_close(
        attention(tokens[:, order], (2, 3, 4)), attention(tokens, (2, 3, 4))[:, order]
    )


@pytest.mark.parametrize("dim", [2, 4, 6, 14])
def test_rotary_scores_depend_on_relative_positions_only(dim: int) -> None:
    grid = (4, 5, 6)
    cos_LP, sin_LP = rotary_angles(grid, dim, CPU)
    query, key = draws(1, 1, 1, dim, seed=1), draws(1, 1, 1, dim, seed=2)
    length = 4 * 5 * 6
    q = rotate(query.expand(1, 1, length, dim), cos_LP, sin_LP)[0, 0]
    k = rotate(key.expand(1, 1, length, dim), cos_LP, sin_LP)[0, 0]
    scores = (q @ k.T).reshape(*grid, *grid)
    torch.testing.assert_close(q.norm(dim=1), query.norm().expand(length))
    score_of: dict[tuple[int, ...], float] = {}
    places = [(t, h, w) for t in range(4) for h in range(5) for w in range(6)]
    for a in places:
        for b in places:
            shift = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
            score = scores[(*a, *b)].item()
            assert abs(score_of.setdefault(shift, score) - score) < 1e-4
    near = [score_of[s] for s in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1))]
    assert min(abs(x - y) for i, x in enumerate(near) for y in near[:i]) > 1e-3  # each axis counts


@pytest.mark.parametrize("head_dim", [2, 4, 6, 32, 256])
def test_rotary_angles_of_every_even_width(head_dim: int) -> None:
    cos_LP, sin_LP = rotary_angles((2, 3, 1), head_dim, CPU)
    assert cos_LP.shape == sin_LP.shape == (6, head_dim // 2)
    torch.testing.assert_close(cos_LP**2 + sin_LP**2, torch.ones_like(cos_LP))
    assert (cos_LP[0] == 1).all()


def test_the_layer_is_the_formula_of_its_own_queries_keys_and_values() -> None:
    attention, tokens = layer(), draws(2, 12, 8)
    q, k, v = attention.heads_of(tokens, (3, 2, 2))
    assert q.shape == k.shape == v.shape == (2, 2, 12, 6)
    mixed = written_out(q, k, v).float().transpose(1, 2).reshape(2, 12, 12)
    torch.testing.assert_close(attention(tokens, (3, 2, 2)), mixed @ attention.out.weight.T)
    # Normalised: a score is at most sqrt(head dim), whatever the tokens are.
    q, k, _ = attention.heads_of(1000 * tokens, (3, 2, 2))
    assert (q @ k.transpose(-1, -2) / 6**0.5).abs().max() <= 6**0.5 + 1e-4


def test_an_exact_penalty_reaches_the_attention_weights() -> None:
    config = tiny_config({"loss.penalty_form": "exact", "loss.penalty_interval": 1})
    engine = tiny_step(config).discriminator
    video = draws(2, 3, 4, 16, 16).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(engine.bare(video).sum(), video, create_graph=True)
    gradient.square().sum().backward()
    weights = [p for n, p in engine.module.named_parameters() if ".mix." in n]
    assert weights
    for weight in weights:
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()


def test_no_bias_is_built() -> None:
    assert {name for name, _ in layer().named_parameters()} == {
        "qkv.weight", "out.weight", "query_norm.weight", "key_norm.weight",
    }  # fmt: skip
    config = tiny_config()
    for engine in (tiny_step(config).generator, tiny_step(config).discriminator):
        names = [name for name, _ in engine.module.named_parameters() if "attention" in name]
        assert names and not [name for name in names if "bias" in name]


def test_the_switch() -> None:
    config = AttentionConfig(heads=2, head_dim=0, resolutions=(8,))
    (built,) = attention_at(8, 12, config, "decoder")
    assert isinstance(built, AttentionLayer) and isinstance(built.mix, SelfAttention)
    assert built.mix.head_dim == 6
    assert attention_at(4, 12, config, "decoder") == []
    assert attention_at(8, 12, AttentionConfig(kind="none", resolutions=(8,)), "decoder") == []
