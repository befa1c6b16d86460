"""A step on GPUs, over NCCL, is a step of plain PyTorch, at every stage."""

import pytest
import torch

from cluster.engine_difference import Difference, largest, measure
from cluster.parity import TOLERANCES
from cluster.ranks import run_on_ranks
from cluster.zero_settings import deepspeed_settings
from distgan.config import Config, ShardingConfig
from tests.test_zero_steps import ACCUMULATED, OFFLOADED, WEIGHTS_OFFLOADED, case

BF16 = {"train__precision": "bf16"}
CLIPPED = {"clip_norm": 0.05}
# Those in bf16 add two numbers at most, in whatever order: see `cluster.parity.check_parity`.
CASES: dict[str, Config] = {
    "0": case((0, 0), CLIPPED, loss__penalty_form="exact"),
    "1": case((1, 1), CLIPPED, **ACCUMULATED),
    "2": case((2, 2), CLIPPED),
    "3": case((3, 3), CLIPPED, **ACCUMULATED),
    "0, bf16": case((0, 0), **BF16),
    "1 and 2, bf16": case((1, 2), **BF16),
    "3, bf16": case((3, 3), **BF16),
    "1 offloaded": case((1, 1), CLIPPED, **ACCUMULATED, **OFFLOADED),
    "2 offloaded": case((2, 2), CLIPPED, **OFFLOADED),
    "3 offloaded": case((3, 3), CLIPPED, **ACCUMULATED, **OFFLOADED, **WEIGHTS_OFFLOADED),
    "3, weights alone offloaded": case((3, 3), CLIPPED, **WEIGHTS_OFFLOADED),
}


@pytest.fixture(scope="module", params=[1, 2], ids=["one GPU", "two GPUs"])
def found(request: pytest.FixtureRequest) -> dict[str, Difference]:
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if here < request.param:
        pytest.skip(f"NCCL needs a GPU for each of {request.param} ranks; {here} here")
    configs = list(CASES.values())
    steps = run_on_ranks(
        measure, (configs, 3, "cuda"), world_size=request.param, device_type="cuda"
    )[0]
    return dict(zip(CASES, map(largest, steps), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_step_equals_plain_pytorch(name: str, found: dict[str, Difference]) -> None:
    print(f"{name}: {found[name]}")
    assert found[name].within(TOLERANCES["cuda"]), found[name]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_only_stage_3_sends_gradients_beside_the_backward(stage: int) -> None:
    """So that the cases above at stage 3 cover it. Needs no GPU."""
    settings = deepspeed_settings(ShardingConfig(zero_stage=stage), [100, 900], "cuda")
    assert settings["zero_optimization"]["overlap_comm"] == (stage == 3)
