"""Costs from shapes alone are those that are counted on real tensors."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distgan.attention import ATTENTION_KINDS, AttentionLayer, MlpLayer, twice_differentiable
from distgan.attention.window import WindowAttention
from distgan.blocks import initialise
from distgan.config import AttentionConfig
from distgan.costs import kept_tensors, layer_cost, network_costs, save_costs
from distgan.networks import build_discriminator, build_generator, count_parameters
from tests.test_networks import inputs
from tests.tiny_networks import CPU, tiny_config

GRID, WIDTH = (4, 8, 8), 24
OPTIONS: dict[str, Any] = {"heads": 2, "head_dim": 16, "block": (2, 4, 4), "density": 0.5}


def counted(module: torch.nn.Module, *tensors: Any) -> tuple[int, int]:
    """FLOPs (by paths whose products PyTorch's counter knows) and bytes kept (by fast paths)."""
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    module(*tensors)
    with kept_tensors() as kept:
        module(*tensors)
    with twice_differentiable(), FlopCounterMode(display=False) as counter:
        module(*tensors)
    return counter.get_total_flops(), sum(size for key, size in kept.items() if key not in own)


def built(kind: str, **options: Any) -> AttentionLayer:
    layer = AttentionLayer(WIDTH, AttentionConfig(kind=kind, **(OPTIONS | options)))
    initialise(layer, 0, "test")
    return layer


@pytest.mark.parametrize("scores", ["dot", "l2"])
@pytest.mark.parametrize("kind", sorted(ATTENTION_KINDS))
def test_a_layer_costs_what_is_counted(kind: str, scores: str) -> None:
    layer = built(kind, scores=scores, window=(0, 0, 0))
    cost = layer_cost(built(kind, scores=scores, window=(0, 0, 0)).to("meta"), WIDTH, GRID)
    flops, kept = counted(layer, torch.randn(1, *GRID, WIDTH, requires_grad=True))
    assert cost.parameters == sum(p.numel() for p in layer.parameters())
    if scores == "dot":
        assert (cost.flops, cost.activation_bytes) == (flops, kept)
    else:  # l2 keeps |k|^2 in one channel more
        assert cost.flops <= flops < 1.6 * cost.flops
        assert cost.activation_bytes == pytest.approx(kept, rel=0.03)


def test_a_window_costs_its_pairs_and_computes_a_few_more() -> None:
    layer = built("window", window=(3, 3, 3))
    mix, cost = layer.mix, layer_cost(built("window", window=(3, 3, 3)).to("meta"), WIDTH, GRID)
    assert isinstance(mix, WindowAttention)
    flops, _ = counted(layer, torch.randn(1, *GRID, WIDTH))
    products = 4 * 2 * 16
    computed = mix.tiles(GRID, CPU).num_computed
    assert flops - cost.flops == products * (computed - mix.num_pairs(GRID))
    assert mix.num_pairs(GRID) == mix.mask(GRID, torch.arange(256)).sum() == 256 * 27 < computed


def test_the_mlp_costs_what_is_counted() -> None:
    mlp = MlpLayer(WIDTH, 10)
    initialise(mlp, 0, "test")
    cost = layer_cost(MlpLayer(WIDTH, 10).to("meta"), WIDTH, GRID)
    assert cost.flops == 2 * 256 * 2 * WIDTH * 10 and cost.parameters == 2 * WIDTH * 10
    flops, kept = counted(mlp, torch.randn(1, *GRID, WIDTH, requires_grad=True))
    assert (cost.flops, cost.activation_bytes) == (flops, kept)


@pytest.mark.parametrize("kind", ["none", "self", "sparse"])
@pytest.mark.parametrize("task", ["none", "prediction"])
def test_networks_cost_what_is_counted(kind: str, task: str) -> None:
    values = {"model.attention.kind": kind, "model.attention.mlp_width": 6, "data.clip_frames": 8}
    config = tiny_config(values | {"conditioning.task": task})
    costs = network_costs(config)
    generator, discriminator = build_generator(config, CPU), build_discriminator(config, CPU)
    video = torch.randn(1, 3, 8, 16, 16)
    for cost, network, tensors in (
        (costs.generator, generator, inputs(config, 1)),
        (costs.discriminator, discriminator, (video,)),
    ):
        flops, kept = counted(network, *tensors)
        assert cost.parameters == count_parameters(network)
        assert cost.flops == flops
        assert cost.activation_bytes == pytest.approx(kept, rel=0.05)
    kinds = [(layer.network, layer.kind) for layer in costs.layers]
    places = ["generator"] * (2 if task == "prediction" else 1) + ["discriminator"]
    expected = [(place, k) for place in places for k in (kind, "mlp") if k != "none"]
    assert kinds == expected
    assert {layer.grid for layer in costs.layers} == {(4, 4, 4)}


def test_costs_lie_beside_the_run(tmp_path: Path) -> None:
    config = tiny_config({"run.dir": str(tmp_path)})
    costs = save_costs(config)
    read = json.loads((tmp_path / "costs.json").read_text())
    assert read["generator"]["flops"] == costs.generator.flops > 0
    assert read["layers"][0]["kind"] == "self" and read["layers"][0]["grid"] == [2, 4, 4]
    assert "GFLOP" in str(costs) and "16 pixels" not in str(costs)


def test_nothing_is_allocated_for_sizes_that_would_not_fit() -> None:
    config = tiny_config(
        {
            "data.resolution": 512,
            "data.clip_frames": 128,
            "model.attention.resolutions": [256],
            "model.temporal_levels": 0,
        }
    )
    costs = network_costs(config)
    assert costs.generator.flops > 4 * (128 * 256 * 256) ** 2 * 8


def test_counting_leaves_no_tensor_behind() -> None:
    """The exponential keeps its own output for the backward pass."""
    with kept_tensors() as kept:
        output = torch.ones(3, requires_grad=True).exp()
    assert sum(kept.values()) == 12
    left = weakref.ref(output)
    del output
    gc.collect()
    assert left() is None
