"""What the local kinds hand to FlexAttention, as far as a CPU can tell; no kernel is compiled."""

import math
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from distgan.attention import Grid, flex, reference_attention
from distgan.attention.local import MOST_PLANS
from tests.test_attention_kinds import LOCAL, built, draws
from tests.tiny_networks import CPU

LARGE: list[tuple[str, Grid, dict[str, Any]]] = [
    ("window", (4, 12, 10), {"window": (3, 7, 7)}),
    ("window", (8, 8, 8), {"window": (0, 5, 5)}),
    ("window", (4, 12, 10), {"window": (0, 0, 0)}),
    ("sparse", (8, 16, 8), {"block": (2, 8, 8), "reach": (1, 0, 0), "density": 0.5}),
    ("sparse", (7, 9, 11), {"block": (2, 4, 4), "reach": (1, 0, 0), "density": 0.3}),
]


@pytest.mark.parametrize(("kind", "grid", "options"), LOCAL)
def test_the_plan_for_flex_attention_has_the_pattern(
    kind: str, grid: Grid, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention uncompiled, forward only: a CPU has no more of it."""
    mix = built(kind, **options)
    q, k, v = (draws(1, 2, math.prod(grid), 16, seed=seed) for seed in range(3))
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    got = flex.flex_attention_over(q, k, v, 16**-0.5, mix.flex_plan(grid, CPU))
    mask = mix.mask(grid, torch.arange(math.prod(grid)))
    torch.testing.assert_close(got, reference_attention(q, k, v, "dot", mask))


@pytest.mark.parametrize(("kind", "grid", "options"), [*LOCAL[::5], *LARGE])
def test_the_block_tables_are_those_of_pytorch(
    kind: str, grid: Grid, options: dict[str, Any]
) -> None:
    mix, length = built(kind, **options), math.prod(grid)
    plan = mix.flex_plan(grid, CPU)
    sees = mix.sees(grid, CPU)

    def mask(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return sees(plan.order[query], plan.order[key])

    wanted = create_block_mask(mask, None, None, length, length, device="cpu")
    got = plan.block_mask
    assert got.seq_lengths == wanted.seq_lengths and got.BLOCK_SIZE == wanted.BLOCK_SIZE
    assert len(got.as_tuple()) == len(wanted.as_tuple())
    for name in ("kv", "full_kv", "q", "full_q"):
        for table in (f"{name}_num_blocks", f"{name}_indices"):
            ours, theirs = getattr(got, table), getattr(wanted, table)
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), table


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that a tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 8)
        return out


@pytest.mark.parametrize("kind", ["window", "sparse"])
def test_a_plan_takes_no_memory_for_pairs(kind: str) -> None:
    largest = []
    for grid in ((2, 16, 16), (2, 32, 32), (2, 64, 64)):
        mix = built(kind, window=(3, 7, 7), block=(2, 8, 8), reach=(1, 0, 0))
        with LargestTensor() as noted:
            mix.flex_plan(grid, CPU)
        largest.append(noted.elements)
        assert noted.elements <= flex.BLOCK * math.prod(grid)
    assert largest[2] <= 4.5 * largest[1] <= 4.5**2 * largest[0]


def test_old_plans_are_let_go() -> None:
    mix = built("window", window=(1, 2, 2))
    grids = [(2, 2, width) for width in range(2, 3 + MOST_PLANS)]
    plans = [mix.flex_plan(grid, CPU) for grid in grids]
    assert len(mix._plans) == MOST_PLANS and mix.flex_plan(grids[-1], CPU) is plans[-1]


def test_one_kernel_too_many_is_an_error_and_no_silent_fallback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    monkeypatch.setattr(flex, "MOST_KERNELS", 4)
    double = flex.compiled_for_each_shape(lambda x: 2 * x, backend="eager")
    for length in (2, 3, 4, 5):
        double(torch.ones(length))
    with pytest.raises(Exception, match="fullgraph=True"):
        double(torch.ones(6))
