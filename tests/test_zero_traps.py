"""The obvious ways to train a GAN under ZeRO are wrong, mostly without a word: which, and where.

With DeepSpeed 0.19.8, as our engine could do it; `test_zero_raw.py` has DeepSpeed's own calls and
says what other settings come to. The engine's rules rest on these tables: when a new DeepSpeed
changes a row, look at them again.

Measured over two steps: where a way is equal, weights and gradients are so in every bit; where it
is wrong, they are off by 0.5 and more.
"""

import traceback
from dataclasses import dataclass
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
EQUAL, WRONG = "equal", "wrong"


@dataclass(frozen=True)
class Raises:
    """An exception of DeepSpeed or PyTorch, so that none of the harness is taken for it."""

    kind: str
    words: str
    """In its message."""
    place: str
    """The function that raises it."""


OWN_BACKWARD = Raises("RuntimeError", "Direct calls to tensor.backward()", "_backward_prologue")
EMPTY_BUCKET = Raises("IndexError", "list index out of range", "reduce_ipg_grads")
LET_GO = Raises("RuntimeError", "size of tensor a (0) must match", "_engine_run_backward")
LET_GO_CONVOLUTION = Raises("RuntimeError", "got stride=[1, 1]", "_engine_run_backward")
"""A double backward reads the weights of a convolution that are let go."""


class Tutorial(ZeroEngine):
    """As in DeepSpeed's GAN tutorial, D is not frozen in the generator's step (there called by the
    engine), but D's loss has one backward here: the tutorial's two are wrong at all stages."""

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
    """The loss in two backwards before one step, through one graph: stage 3 lets go of the weights
    after the first. Through a graph each it would be equal there."""

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


Outcome = str | Raises
# Engine of D, settings, and the outcome at each stage.
TRAPS: dict[str, tuple[type[ZeroEngine], dict[str, Any], tuple[Outcome, ...]]] = {
    "tutorial": (Tutorial, NO_PENALTY, (OWN_BACKWARD, EQUAL, EQUAL, WRONG)),
    "frozen, through its engine": (
        FrozenThroughEngine, NO_PENALTY, (OWN_BACKWARD, EMPTY_BUCKET, EMPTY_BUCKET, WRONG),
    ),
    "two backwards": (TwoBackwards, NO_PENALTY, (EQUAL, WRONG, WRONG, LET_GO)),
    "two backwards with flags": (
        TwoBackwardsWithFlags, NO_PENALTY, (EQUAL, EQUAL, EQUAL, LET_GO),
    ),
    "exact, through its engine": (
        PenaltyThroughEngine, EXACT, (OWN_BACKWARD, EMPTY_BUCKET, EMPTY_BUCKET, LET_GO_CONVOLUTION),
    ),
    "exact, bare": (ZeroEngine, EXACT, (EQUAL, EQUAL, EQUAL, LET_GO_CONVOLUTION)),
}  # fmt: skip


def try_trap(name: str) -> list[str]:
    """On a rank: the outcome at each stage; of an exception, all that `Raises` looks at."""
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
        worst = largest(measure([config], 2, "cpu", make)[0])  # closes the engines whatever befalls
    except Exception as error:  # noqa: BLE001 (which one is looked at by the test)
        place = traceback.extract_tb(error.__traceback__)[-1].name
        return f"{type(error).__name__} in {place}: {error}"
    if worst.weights < 1e-5 and worst.gradients < 1e-5:
        return EQUAL
    return WRONG if worst.weights > 0.1 and worst.gradients > 0.1 else f"neither: {worst}"


def is_as_expected(found: str, expected: Outcome) -> bool:
    if isinstance(expected, str):
        return found == expected
    return found.startswith(f"{expected.kind} in {expected.place}: ") and expected.words in found


@pytest.mark.parametrize("name", TRAPS)
def test_the_ways_that_are_wrong_are_known(name: str) -> None:
    for rank in run_on_ranks(try_trap, (name,), world_size=2):
        for found, expected in zip(rank, TRAPS[name][2], strict=True):
            assert is_as_expected(found, expected), (rank, TRAPS[name][2])
