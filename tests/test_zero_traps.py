"""The obvious ways to train a GAN under ZeRO are wrong, mostly without a word: which, and where.

With DeepSpeed 0.19.8 and the networks here; others came to other outcomes. The engine's rules rest
on this table: when a new DeepSpeed changes a row, look at them again.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cluster.engine_difference import largest, measure
from cluster.ranks import run_on_ranks
from cluster.zero import ZeroEngine
from distgan.config import Config, NetworkOptimConfig, ShardingConfig
from distgan.engine import Engine
from tests.tiny_networks import tiny_config

STAGES = (0, 1, 2, 3)
EXACT = {"loss.penalty_form": "exact", "loss.penalty_interval": 1}
NO_PENALTY = {"loss.penalty": "none"}


class Tutorial(ZeroEngine):
    """As DeepSpeed's GAN tutorial does it: D is not frozen, and called through its engine."""

    def bare(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        return self(*inputs, full_precision=full_precision)

    def frozen(self) -> Any:
        return torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad()


class FrozenThroughEngine(ZeroEngine):
    """D is frozen in the generator's step, but still called through its engine."""

    def bare(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        return self(*inputs, full_precision=full_precision)


class PenaltyThroughEngine(ZeroEngine):
    """The exact penalty's gradient is taken of what the engine returned."""

    def bare(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        call = self if full_precision else super().bare  # only penalties ask for full precision
        return call(*inputs, full_precision=full_precision)


class TwoBackwards(ZeroEngine):
    """The loss in two backwards before one step."""

    def backward(self, loss: Tensor) -> None:
        self._backwards += 1
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.backward(loss / 2, retain_graph=True, scale_wrt_gas=False)
        self._engine.backward(loss / 2, scale_wrt_gas=False)


class TwoBackwardsWithFlags(ZeroEngine):
    """The same, and DeepSpeed is told which one is the step's last."""

    def backward(self, loss: Tensor) -> None:
        self._backwards += 1
        self._engine.set_gradient_accumulation_boundary(False)
        self._engine.backward(loss / 2, retain_graph=True, scale_wrt_gas=False)
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.backward(loss / 2, scale_wrt_gas=False)


# Engine of D, settings, and the outcome at each stage.
TRAPS: dict[str, tuple[type[ZeroEngine], dict[str, Any], tuple[str, str, str, str]]] = {
    "tutorial": (Tutorial, NO_PENALTY, ("raises", "equal", "equal", "wrong")),
    "frozen, through its engine": (
        FrozenThroughEngine, NO_PENALTY, ("raises", "raises", "raises", "wrong"),
    ),
    "two backwards": (TwoBackwards, NO_PENALTY, ("equal", "wrong", "wrong", "raises")),
    "two backwards with flags": (
        TwoBackwardsWithFlags, NO_PENALTY, ("equal", "equal", "equal", "raises"),
    ),
    "exact, through its engine": (
        PenaltyThroughEngine, EXACT, ("raises", "raises", "raises", "raises"),
    ),
    "exact, bare": (ZeroEngine, EXACT, ("equal", "equal", "equal", "raises")),
}  # fmt: skip


def try_trap(name: str) -> list[str]:
    """On a rank: what it comes to at each stage: `equal`, `wrong` or `raises`."""
    kind, values, _ = TRAPS[name]
    outcomes = []
    for stage in STAGES:
        config = tiny_config(values | {
            "cluster.generator.zero_stage": stage,
            "cluster.discriminator.zero_stage": stage,
            "optim.generator.kind": "sgd",
            "optim.discriminator.kind": "sgd",
        })  # fmt: skip
        outcomes.append(outcome(config, kind))
    return outcomes


def outcome(config: Config, kind: type[ZeroEngine]) -> str:
    def make(name: str, module: nn.Module, optim: NetworkOptimConfig, sharding: ShardingConfig,
             precision: str, accumulation: int) -> Engine:  # fmt: skip
        of_name = kind if name == "discriminator" or kind is Tutorial else ZeroEngine
        settings = {"precision": precision, "accumulation": accumulation}
        return of_name(name, module, optim, sharding, **settings)

    try:
        worst = largest(measure([config], 2, "cpu", make)[0])
    except Exception:  # noqa: BLE001  # DeepSpeed asserts, or runs into what it left behind
        return "raises"
    return "equal" if worst.weights < 1e-3 else "wrong"


@pytest.mark.parametrize("name", TRAPS)
def test_the_ways_that_are_wrong_are_known(name: str) -> None:
    first, second = run_on_ranks(try_trap, (name,), world_size=2)
    assert first == second == list(TRAPS[name][2])
