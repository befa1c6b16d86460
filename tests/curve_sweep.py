"""`python -m tests.curve_sweep RUN DATA SEED PROBLEM`: a whole sweep on Ray of simulated learners.

All but the training is a sweep's own: driver, ledger, Tune, trials' processes, records, results.
"""

import copy
import sys
from dataclasses import dataclass
from typing import Any

import torch

from distgan.checkpoint import checkpoint_folder, commit, load_newest, whole, write_fragments
from distgan.config import Config
from distgan.config_loading import load_config
from distgan.metrics.writer import MetricsWriter
from distgan.trainer import Listener, Outcome, StopRequests
from tests.simulated_sweep import (
    HARTMANN_KEYS,
    METRIC,
    RATE,
    Hartmann,
    Learner,
    NoisyQuadratic,
    Simulated,
    Start,
    X,
    Y,
    curve_of,
    simulate,
    spec_of,
)
from tests.tiny import TINY
from tune.records import SweepSpec
from tune.results import write_results
from tune.sweep import run_sweep

PLACES = [1.5, 4.5, 7.5, 10.5, 13.5]


@dataclass(frozen=True)
class Problem:
    algorithm: str
    space: dict[str, Any]
    start: Start
    every: int
    """Steps from one evaluation to the next."""
    settings: dict[str, Any]
    """Of the sweep's other keys."""

    def spec(self, seed: int, algorithm: str = "") -> SweepSpec:
        return spec_of(algorithm or self.algorithm, self.space, seed=seed, **self.settings)

    def simulated(self, seed: int, algorithm: str = "") -> Simulated:
        """The same sweep, one trial at a time and without Ray; or by another algorithm."""
        return simulate(self.spec(seed, algorithm), self.start, at_a_time=1, every=self.every)


PROBLEMS = {
    "branin": Problem(
        "grid+asha", {X: {"choice": PLACES}, Y: {"choice": PLACES}}, curve_of, 1,
        {"max_steps": 27, "num_trials": 25, "reduction_factor": 4},
    ),
    "hartmann": Problem(
        "tpe", {key: {"uniform": [0.0, 1.0]} for key in HARTMANN_KEYS},
        lambda overrides, seed: Hartmann(), 27,
        {"max_steps": 27, "num_trials": 30, "max_concurrent": 1},
    ),
    "quadratic": Problem(
        "pbt", {RATE: {"loguniform": [1e-3, 1.0]}}, lambda overrides, seed: NoisyQuadratic(), 40,
        {"max_steps": 400, "num_trials": 8, "perturbation_steps": 40},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Follow:
    """In place of training: a learner's values, with its state in checkpoints of the real format.

    What it learns from comes out of the trial's configuration, where its overrides went."""

    problem: str

    def __call__(
        self, config: Config, *, show_progress: bool, requests: StopRequests, listener: Listener
    ) -> Outcome:
        problem, run = PROBLEMS[self.problem], config.run.dir
        overrides = {key: _value(config, key) for key in problem.space}
        learner, done = problem.start(overrides, config.seed), 0
        checkpoint, _ = load_newest(run)
        if checkpoint is not None:
            done = checkpoint.step
            vars(learner).update(checkpoint.state)
        with MetricsWriter(run) as writer:
            for step in range(done + problem.every, config.train.max_steps + 1, problem.every):
                logged = {METRIC: learner.train(overrides, step)}
                writer.scalars(step, logged)
                _save(run, step, learner)
                listener(step, float(step), logged)
                if requests.received is not None:
                    return Outcome(step=step, reason="asked to stop", signal=requests.received)
        return Outcome(step=config.train.max_steps, reason="train.max_steps")


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _save(run: str, step: int, learner: Learner) -> None:
    folder = checkpoint_folder(run, step)
    parts = [write_fragments(folder, "rank-0", whole({"step": torch.tensor(step)}))]
    commit(folder, parts, copy.deepcopy(vars(learner)))


def main(run: str, data: str, seed: str, name: str) -> None:
    problem = PROBLEMS[name]
    config = load_config(overrides=[
        *TINY, f"run.dir={run}", f"data.shards={data}", f"seed={seed}",
        f"train.max_steps={problem.settings['max_steps']}",
        f"log.proxy_interval_steps={problem.every}",
        # The base configuration is tried too, and what it comes to is part of what tpe knows.
        *(f"{key}={_value(Config(), key)}" for key in problem.space),
    ])  # fmt: skip
    outcome = run_sweep(config, problem.spec(int(seed)), Follow(name))
    assert outcome.is_complete
    print(write_results(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
