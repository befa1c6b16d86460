"""Each kind of attention: its pattern is its definition, its fast path the written-out formula."""

import itertools
import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distgan.attention import (
    ATTENTION_KINDS,
    AttentionLayer,
    Grid,
    MlpLayer,
    SelfAttention,
    attention_at,
    reference_attention,
    twice_differentiable,
)
from distgan.attention import tiles as tiled
from distgan.attention.additive import AdditiveAttention
from distgan.attention.factorised import FactorisedAttention
from distgan.attention.pairwise import fast_attention
from distgan.attention.sparse import SparseAttention, seen_blocks
from distgan.attention.window import WindowAttention
from distgan.blocks import initialise
from distgan.config import AttentionConfig
from distgan.sparsity import num_seen, window_start
from tests.tiny_networks import keep_width, randomise

KINDS = sorted(ATTENTION_KINDS)
MIXING = sorted(set(ATTENTION_KINDS) - {"additive"})
WINDOWS: list[tuple[Grid, Grid]] = [
    ((2, 4, 4), (1, 3, 3)),
    ((4, 8, 8), (3, 3, 5)),
    ((3, 5, 7), (2, 4, 3)),
    ((1, 9, 6), (0, 3, 6)),
    ((5, 3, 2), (5, 3, 2)),
    ((7, 1, 1), (3, 1, 1)),
]
BLOCKS: list[tuple[Grid, Grid, Grid, float]] = [
    ((2, 4, 4), (2, 2, 2), (0, 0, 0), 0.5),
    ((4, 8, 8), (2, 2, 4), (1, 0, 0), 0.25),
    ((3, 5, 7), (2, 2, 3), (1, 1, 0), 0.7),
    ((5, 3, 2), (3, 2, 2), (0, 1, 0), 0.9),
    ((4, 4, 4), (1, 3, 4), (1, 0, 0), 1.0),
    ((6, 5, 5), (1, 2, 2), (0, 0, 0), 0.05),
]


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def built(kind: str, width: int = 8, **options: Any) -> Any:
    """The mixing part of a layer, with weights off their start values."""
    config = AttentionConfig(kind=kind, **({"heads": 2, "head_dim": 6} | options))
    mix = ATTENTION_KINDS[kind](width, config)
    initialise(mix, 0, "test")
    randomise(mix)
    return mix


LOCAL = [("window", grid, {"window": window}) for grid, window in WINDOWS] + [
    ("sparse", grid, {"block": block, "reach": reach, "density": density})
    for grid, block, reach, density in BLOCKS
]


def places_of(grid: Grid) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, grid)))


@pytest.mark.parametrize(("grid", "window"), WINDOWS)
def test_the_window_pattern_is_its_definition(grid: Grid, window: Grid) -> None:
    mix = built("window", window=window)
    mask = mix.mask(grid, torch.arange(math.prod(grid)))
    sizes = [size or length for size, length in zip(window, grid, strict=True)]
    for row, query in enumerate(places_of(grid)):
        seen = {
            place for place, flag in zip(places_of(grid), mask[row].tolist(), strict=True) if flag
        }
        axes = []
        for place, length, size in zip(query, grid, sizes, strict=True):
            # The contiguous run of `size` places whose middle is nearest to the query.
            runs = [range(start, start + size) for start in range(length - size + 1)]
            axes.append(min(runs, key=lambda run: abs(run[0] + size // 2 - place)))
        assert seen == set(itertools.product(*axes))
        assert query in seen
    assert mask.sum() == mix.num_pairs(grid)


@pytest.mark.parametrize(("grid", "block", "reach", "density"), BLOCKS)
def test_the_sparse_pattern_is_its_definition(
    grid: Grid, block: Grid, reach: Grid, density: float
) -> None:
    mix = built("sparse", block=block, reach=reach, density=density)
    mask = mix.mask(grid, torch.arange(math.prod(grid)))
    assert mask.sum() == mix.num_pairs(grid)
    blocks = [-(-length // size) for length, size in zip(grid, block, strict=True)]
    of_token = [
        tuple(p // b for p, b in zip(place, block, strict=True)) for place in places_of(grid)
    ]
    order = list(itertools.product(*map(range, blocks)))
    for row, own in enumerate(of_token):
        seen = {of_token[key] for key in mask[row].nonzero()[:, 0].tolist()}
        whole = [key for key, other in enumerate(of_token) if other in seen]
        assert mask[row].nonzero()[:, 0].tolist() == whole, "blocks are seen whole"
        assert len(seen) == max(1, round(density * math.prod(blocks)))
        near = {
            other
            for other in order
            if all(
                0 <= o - window_start(p, n, min(2 * r + 1, n)) < min(2 * r + 1, n)
                for o, p, n, r in zip(other, own, blocks, reach, strict=True)
            )
        }
        assert own in near and near <= seen
        far = [other for other in order if other not in near]
        taken = [far.index(other) for other in order if other in seen and other not in near]
        gaps = [(b - a) % len(far) for a, b in zip(taken, taken[1:] + taken[:1], strict=True)]
        assert not gaps or len(gaps) == 1 or max(gaps) - min(gaps) <= 1, "even strides"


def test_far_blocks_are_all_seen_by_some() -> None:
    seen = seen_blocks((8, 8, 8), (2, 2, 2), (1, 0, 0), 0.1).tolist()
    assert {len(others) for others in seen} == {num_seen((8, 8, 8), (2, 2, 2), 0.1)} == {6}
    assert set().union(*seen) == set(range(64))
    two_steps = [set().union(*(seen[other] for other in others)) for others in seen]
    assert min(map(len, two_steps)) >= 3 * 6


def test_thousands_of_blocks_take_no_time_and_are_found_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = time.process_time()
    assert seen_blocks((16, 64, 64), (2, 2, 2), (1, 0, 0), 0.125).shape == (8192, 1024)
    assert time.process_time() - start < 2, "block by block in Python it is 5 s"
    calls = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return seen_blocks(*arguments)

    monkeypatch.setattr("distgan.attention.sparse.seen_blocks", counted)
    grid: Grid = (4, 6, 10)  # of no other test
    for _ in range(3):
        mix = built("sparse", density=0.5)
        mix.num_pairs(grid)
        mix.mask(grid, torch.arange(3))
        mix.tiles(grid, torch.device("cpu"))
    assert len(calls) == 2, "for the pairs, and for the tiles"


def outputs_and_gradients(function: Any, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    upstream = draws(*output.shape, seed=9, dtype=output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def assert_all_close(got: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scores", ["dot", "l2"])
@pytest.mark.parametrize(("kind", "grid", "options"), LOCAL)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str
)
def test_the_fast_path_of_a_local_kind_is_the_masked_formula(
    kind: str, grid: Grid, options: dict[str, Any], scores: Any, dtype: torch.dtype,
    tolerance: float, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    mix = built(kind, scores=scores, **options)
    inputs = [draws(2, 2, math.prod(grid), 6, seed=seed, dtype=dtype) for seed in range(3)]
    mask = mix.mask(grid, torch.arange(math.prod(grid)))
    wanted = outputs_and_gradients(
        lambda q, k, v: reference_attention(q, k, v, scores, mask), inputs
    )
    for chunk in (1, 5000, tiled.CHUNK_ELEMENTS):
        monkeypatch.setattr(tiled, "CHUNK_ELEMENTS", chunk)
        got = outputs_and_gradients(lambda q, k, v: mix.attend(q, k, v, grid), inputs)
        assert_all_close(got, wanted, tolerance)
    with twice_differentiable():
        got = outputs_and_gradients(lambda q, k, v: mix.attend(q, k, v, grid), inputs)
    assert_all_close(got, wanted, tolerance)


@pytest.mark.parametrize("length", [1, 7, 64])
def test_l2_scores_of_all_pairs(length: int) -> None:
    """Against distances taken one by one."""
    q, k, v = (draws(1, 2, length, 6, seed=seed, dtype=torch.float64) for seed in range(3))
    squares = (q[:, :, :, None] - k[:, :, None]).square().sum(-1)
    wanted = torch.softmax(-squares / 6**0.5, dim=-1) @ v
    torch.testing.assert_close(reference_attention(q, k, v, "l2"), wanted)
    torch.testing.assert_close(fast_attention(q, k, v, "l2"), wanted)
    low = fast_attention(*(x.bfloat16() for x in (q, k, v)), "l2")
    assert (low.double() - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("grid", [(2, 3, 4), (5, 1, 2), (1, 4, 4), (3, 5, 7)])
def test_factorised_is_attention_under_two_masks(grid: Grid) -> None:
    mix: FactorisedAttention = built("factorised").double()
    tokens = draws(2, math.prod(grid), 8, dtype=torch.float64)

    def masked(part: SelfAttention, tokens: Tensor, mask: Tensor) -> Tensor:
        heads = reference_attention(*part.heads_of(tokens, grid), "dot", mask)
        return part.out(heads.transpose(1, 2).flatten(2))

    def written_out(tokens: Tensor) -> Tensor:
        same_frame, same_place = mix.masks(grid, torch.arange(math.prod(grid)))
        space = masked(mix.space, tokens, same_frame)
        between = nn.functional.layer_norm(tokens + space, (8,))
        return space + masked(mix.time, between, same_place)

    same_frame, same_place = mix.masks(grid, torch.arange(math.prod(grid)))
    assert same_frame.sum() + same_place.sum() == mix.num_pairs(grid)
    got = outputs_and_gradients(lambda x: mix(x, grid), [tokens])
    assert_all_close(got, outputs_and_gradients(written_out, [tokens]), 1e-5)


def test_additive_weighs_each_element_by_itself() -> None:
    mix: AdditiveAttention = built("additive")
    tokens = draws(2, 12, 8)
    got = mix(tokens, (3, 2, 2))
    key, value = (mix.key_value(tokens).view(2, 12, 2, 2, 6)[:, :, i] for i in (0, 1))
    for token in range(12):
        heads = []
        for head in range(2):
            score = (key[:, token, head].tanh() @ mix.score_weight[head])[:, None]
            heads.append(value[:, token, head] / (1 + torch.exp(-score)))
        torch.testing.assert_close(got[:, token], mix.out(torch.cat(heads, dim=1)))
    # No mixing: what one element is changes no other.
    other = tokens.clone()
    other[:, 5] += 1
    changed = (mix(other, (3, 2, 2)) - got).abs().amax(dim=(0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize(("kind", "options"), [
    ("window", {"window": (0, 0, 0)}), ("sparse", {"density": 1.0}),
])  # fmt: skip
def test_a_local_kind_that_sees_all_is_self_attention(kind: str, options: dict[str, Any]) -> None:
    grid, tokens = (4, 4, 2), draws(2, 32, 8)
    torch.testing.assert_close(built(kind, **options)(tokens, grid), built("self")(tokens, grid))


def test_dense_has_one_head_as_wide_as_all() -> None:
    dense, several = built("dense"), built("self")
    assert (dense.heads, dense.head_dim) == (1, 12)
    assert dense.qkv.weight.shape == several.qkv.weight.shape


@pytest.mark.parametrize("kind", ["dense", "self", "additive"])
def test_without_positions_the_order_of_tokens_does_not_count(kind: str) -> None:
    mix, tokens = built(kind, positions="none"), draws(2, 24, 8)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    got = mix(tokens[:, order], (2, 3, 4))
    torch.testing.assert_close(got, mix(tokens, (2, 3, 4))[:, order])


def test_without_positions_factorised_lets_frames_and_places_be_permuted() -> None:
    mix, tokens = built("factorised", positions="none"), draws(2, 3, 8, 8)
    frames, places = torch.tensor([2, 0, 1]), torch.tensor([5, 0, 7, 1, 2, 6, 4, 3])

    def permuted(x: Tensor) -> Tensor:
        return x.view(2, 3, 8, 8)[:, frames][:, :, places].flatten(1, 2)

    got = mix(permuted(tokens), (3, 2, 4))
    torch.testing.assert_close(got, permuted(mix(tokens.flatten(1, 2), (3, 2, 4))))


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_a_window_moves_with_its_content_away_from_edges(positions: str) -> None:
    grid: Grid = (6, 9, 9)
    mix = built("window", window=(3, 3, 3), positions=positions)
    x = draws(1, *grid, 8)
    moved = x.roll((1, 2, 1), dims=(1, 2, 3))
    out, out_moved = (mix(y.flatten(1, 3), grid).view(1, *grid, 8) for y in (x, moved))
    inner = out.roll((1, 2, 1), dims=(1, 2, 3))[:, 2:-1, 3:-1, 2:-1]
    torch.testing.assert_close(out_moved[:, 2:-1, 3:-1, 2:-1], inner)


@pytest.mark.parametrize("kind", MIXING)
def test_positions_are_felt(kind: str) -> None:
    grid, tokens = (4, 4, 4), draws(1, 64, 8)
    assert (
        built(kind)(tokens, grid) - built(kind, positions="none")(tokens, grid)
    ).abs().max() > 0.01


@pytest.mark.parametrize("scores", ["dot", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_second_derivative_is_right(
    kind: str, scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_width(monkeypatch)
    options = {"heads": 1, "head_dim": 2, "window": (1, 2, 2), "density": 0.5, "block": (1, 2, 2)}
    mix = built(kind, 3, scores=scores, reach=(0, 0, 0), **options).double()
    tokens = draws(1, 8, 3, dtype=torch.float64).requires_grad_()
    with twice_differentiable():
        assert torch.autograd.gradgradcheck(lambda x: mix(x, (2, 2, 2)), tokens, atol=1e-4)


@pytest.mark.parametrize("kind", ["window", "sparse"])
def test_the_fast_path_refuses_a_second_derivative_that_it_has_not(kind: str) -> None:
    tokens = draws(1, 64, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(
        built(kind)(tokens, (4, 4, 4)).sum(), tokens, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("scores", ["dot", "l2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, 1e18, 1e19, 1e25, 3e37])
def test_extreme_tokens_in_bf16_give_no_nan(kind: str, scores: Any, size: float) -> None:
    config = AttentionConfig(kind=kind, heads=2, head_dim=4, scores=scores)
    layer = AttentionLayer(8, config)
    initialise(layer, 0, "test")
    x_BTHWC = (size * draws(1, 4, 4, 4, 8)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x_BTHWC)
        if size <= 1e18:  # by itself, without the layer's normalisation
            assert layer.mix((size * draws(1, 64, 8)).bfloat16(), (4, 4, 4)).isfinite().all()
    output.float().mean().backward()
    assert output.isfinite().all()
    assert x_BTHWC.grad is not None and x_BTHWC.grad.isfinite().all()


@pytest.mark.parametrize("scores", ["dot", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_near_float32(kind: str, scores: Any) -> None:
    mix, tokens = built(kind, scores=scores), draws(2, 64, 8)
    wanted = outputs_and_gradients(lambda x: mix(x, (4, 4, 4)), [tokens])
    with torch.autocast("cpu", torch.bfloat16):
        got = outputs_and_gradients(lambda x: mix(x, (4, 4, 4)), [tokens])
    for a, b in zip(got, wanted, strict=True):
        assert (a.float() - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_a_gradient_that_counts(kind: str) -> None:
    for scores in ("dot", "l2"):
        mix = built(kind, scores=scores)
        mix(draws(2, 64, 8), (4, 4, 4)).square().mean().backward()
        norms = {name: p.grad.norm().item() for name, p in mix.named_parameters()}
        assert min(norms.values()) > 1e-3 * max(norms.values()), norms
        assert not [name for name in norms if "bias" in name]


def test_the_switch_builds_layers_where_they_are_placed() -> None:
    for kind, made in (("window", WindowAttention), ("sparse", SparseAttention)):
        (layer,) = attention_at(8, 12, AttentionConfig(kind=kind), "decoder")
        assert isinstance(layer, AttentionLayer) and isinstance(layer.mix, made)
    only = AttentionConfig(placement=("discriminator",), mlp_width=5)
    assert attention_at(8, 12, only, "encoder") == attention_at(8, 12, only, "decoder") == []
    attention, mlp = attention_at(8, 12, only, "discriminator")
    assert isinstance(attention, AttentionLayer) and isinstance(mlp, MlpLayer)
    (mlp,) = attention_at(8, 12, AttentionConfig(kind="none", mlp_width=5), "decoder")
    assert isinstance(mlp, MlpLayer) and mlp.inner.weight.shape == (5, 12)
    assert attention_at(4, 12, AttentionConfig(kind="none", mlp_width=5), "decoder") == []
    initialise(mlp, 0, "test")
    x = draws(2, 2, 3, 3, 12)
    normal = nn.functional.layer_norm(x, (12,))
    hidden = nn.functional.silu(normal @ mlp.inner.weight.T)
    torch.testing.assert_close(mlp(x), x + hidden @ mlp.outer.weight.T)
