"""Sweeps without training and without Ray's processes: `Plan` and `stopping_rule` as a sweep
configures them, told of learning curves whose optimum is known.

Problems, all published:

- Branin's function (Dixon and Szego 1978) over two hyperparameters, reached along power laws,
  c + a * step ** -b ("pow3" in Domhan et al. 2015, from which no curve of a real network strays
  far), with a and b of each configuration's own, so curves cross, and noise on each evaluation.
- Hartmann's function of six hyperparameters (Dixon and Szego 1978), with one shape of curve.
- The toy problem of population-based training (Jaderberg et al. 2017, section 3 and figure 2).
- A noisy quadratic (Schaul et al. 2013): the best learning rate falls while it trains.
"""

import copy
import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from distgan.config import Config
from distgan.seeding import numpy_generator
from tune.algorithms import StoppingRule, stopping_rule
from tune.plan import Job, Plan
from tune.records import MetricSpec, SweepSpec, TrialRecord
from tune.space import Overrides, Space

METRIC = "quality/proxy_frechet_ema"
X, Y = "loss.gamma", "train.augment.instance_noise"  # keys that take any number from 0 on
RATE = "optim.generator.lr"
MOST_STEPS = 81


class Learner(Protocol):
    """What a trial trains."""

    def train(self, overrides: Overrides, step: int) -> float:
        """Goes on to `step` and returns the metric there."""
        ...


Start = Callable[[Overrides, int], Learner]
"""A new learner from (overrides, seed)."""


@dataclass
class Simulated:
    """A sweep that came to its end."""

    records: dict[str, TrialRecord]
    steps: int = 0
    """Trained by all trials together, without those of the base configuration."""
    snapshots: dict[tuple[str, int], Learner] = field(default_factory=dict)

    def best(self) -> TrialRecord:
        ended = [r for r in self.records.values() if r.status == "finished" and r.group != "base"]
        return min(ended, key=lambda record: record.values[METRIC])


def spec_of(algorithm: str, space: dict[str, Any], **values: Any) -> SweepSpec:
    return SweepSpec.model_validate(
        {"algorithm": algorithm, "space": space, "metrics": [MetricSpec(name=METRIC)]} | values
    )


def simulate(
    spec: SweepSpec,
    start: Start,
    *,
    rule: StoppingRule | None = None,
    at_a_time: int = 4,
    every: int = 1,
) -> Simulated:
    """Runs a sweep's trials, `at_a_time` side by side, at changing speeds.

    Args:
        rule: instead of the one that the algorithm asks for.
        every: steps from one evaluation to the next.
    """
    plan = Plan(spec, _space(json.dumps(spec.space)))
    rule = rule or stopping_rule(spec, every)
    done = Simulated(plan.records)
    speed = numpy_generator(spec.seed, "speed")
    running: list[tuple[Job, Learner]] = []
    while True:
        while len(running) < at_a_time and (job := plan.next_job()) is not None:
            running.append((job, _learner(job, start, done)))
        if not running:
            assert plan.is_finished()
            return done
        place = int(speed.integers(len(running)))
        job, learner = running[place]
        record = plan.records[job.record.trial_id]
        step = min(record.step + every, spec.max_steps)
        value = learner.train(record.overrides, step)
        done.steps += step - record.step if record.group != "base" else 0
        record = replace(record, step=step, values={METRIC: value})
        stopped = step < spec.max_steps and rule.stops(record.trial_id, step, value)
        if stopped or step == spec.max_steps:
            record = replace(record, status="stopped" if stopped else "finished")
        waits = bool(job.until_step) and step >= job.until_step
        if waits:
            done.snapshots[record.trial_id, step] = copy.deepcopy(learner)
        active = record.status == "running" and not waits
        plan.note(record, active=active)
        if not active:
            running.pop(place)


@functools.cache
def _space(text: str) -> Space:
    """Checking a space takes longer than simulating a sweep."""
    return Space(json.loads(text), Config())


def _learner(job: Job, start: Start, done: Simulated) -> Learner:
    record = job.record
    if job.parent_step:
        return copy.deepcopy(done.snapshots[record.parent, job.parent_step])
    if record.step:  # who copies it later needs it as it was
        return copy.deepcopy(done.snapshots[record.trial_id, record.step])
    return start(record.overrides, record.seed)


def branin(x: float, y: float) -> float:
    """x in [-5, 10], y in [0, 15]; the least value, at three places, is 0.397887."""
    bend = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


class PowerLaw:
    """A curve that falls to `limit`, with noise; what else it is follows from the seed and name."""

    def __init__(self, limit: float, seed: int, name: str, noise: float = 0.02) -> None:
        self.limit = limit
        draw = numpy_generator(seed, f"curve {name}")
        self.height, self.exponent = 20 * draw.uniform(0.5, 1.5), draw.uniform(0.7, 1.3)
        self.luck = [math.exp(noise * z) for z in draw.normal(size=MOST_STEPS + 1)]

    def train(self, overrides: Overrides, step: int) -> float:
        return self.exact(step) * self.luck[step]

    def exact(self, step: int) -> float:
        """The value without its noise."""
        return float(self.limit + self.height * step**-self.exponent)


@functools.cache
def branin_curve(x: float, y: float, seed: int) -> PowerLaw:
    """The curve of a configuration; each seed gives it another."""
    return PowerLaw(branin(x - 5, y), seed, f"{x} {y}")


def start_branin(seed: int) -> Start:
    return lambda overrides, _: curve_of(overrides, seed)


def curve_of(overrides: Overrides, seed: int) -> PowerLaw:
    x, y = overrides[X], overrides[Y]
    assert isinstance(x, int | float) and isinstance(y, int | float)
    return branin_curve(x, y, seed)


HARTMANN_KEYS = (
    "train.augment.probability", "train.augment.brightness", "optim.generator.weight_decay",
    "optim.discriminator.weight_decay", "optim.generator.lr_final", "optim.discriminator.lr_final",
)  # fmt: skip  # keys that take any number from 0 to 1
_HARTMANN_HEIGHT = np.array([1.0, 1.2, 3.0, 3.2])
_HARTMANN_WIDTH = np.array([
    [10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14],
    [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14],
])  # fmt: skip
_HARTMANN_PLACE = 1e-4 * np.array([
    [1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
    [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381],
])  # fmt: skip


class Hartmann:
    """A curve to 3.32237 plus Hartmann's function of six numbers from 0 to 1: at least 0."""

    def train(self, overrides: Overrides, step: int) -> float:
        return hartmann(overrides) + 20 / step


def hartmann(overrides: Overrides) -> float:
    x = np.array([overrides[key] for key in HARTMANN_KEYS], dtype=float)
    bumps = np.exp(-(_HARTMANN_WIDTH * (x - _HARTMANN_PLACE) ** 2).sum(axis=1))
    return 3.32237 - float(_HARTMANN_HEIGHT @ bumps)


@dataclass
class ToyMember:
    """Maximises 1.2 - t0^2 - t1^2 by steps on 1.2 - h0 t0^2 - h1 t1^2, from t0 = t1 = 0.9; (h0, h1)
    is (1, 0) or (0, 1), so either alone comes to 0.39 and both in turn to 1.2. The metric is what
    1.2 lacks to it: the loss t0^2 + t1^2, of at least 0."""

    theta: list[float] = field(default_factory=lambda: [0.9, 0.9])
    step: int = 0

    def train(self, overrides: Overrides, step: int) -> float:
        trained = 0 if overrides[RATE] == TOY_VALUES[0] else 1
        for _ in range(step - self.step):
            self.theta[trained] -= 0.01 * 2 * self.theta[trained]
        self.step = step
        return sum(theta**2 for theta in self.theta)


TOY_VALUES = (0.25, 0.75)  # of RATE, which stands for (h0, h1)


@dataclass
class NoisyQuadratic:
    """Expected loss of SGD on a quadratic with gradients of variance 1: it becomes
    (1 - rate)^2 loss + rate^2 in a step. The best rate of a step is loss / (loss + 1), and then the
    loss after t steps is 1 / (1 / start + t): no fixed rate comes near."""

    loss: float = 100.0
    step: int = 0

    def train(self, overrides: Overrides, step: int) -> float:
        rate = overrides[RATE]
        assert isinstance(rate, float)
        for _ in range(step - self.step):
            self.loss = (1 - rate) ** 2 * self.loss + rate**2
        self.step = step
        return self.loss


def best_fixed_rate(low: float, high: float, steps: int) -> float:
    """The loss that the best of 1000 fixed rates comes to."""
    rates = [low * (high / low) ** (i / 999) for i in range(1000)]
    return min(NoisyQuadratic().train({RATE: rate}, steps) for rate in rates)
