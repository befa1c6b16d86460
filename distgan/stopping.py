"""When training ends: the first rule that holds. Pure bookkeeping on logged numbers."""

import math
from collections.abc import Mapping
from typing import Any

from distgan.config import Config
from distgan.config_checks import PROXY_METRIC
from distgan.errors import DivergedError, NonFiniteError


class StopRules:
    """Asked after every step; its memory is part of the checkpoint."""

    def __init__(self, config: Config) -> None:
        self.config = config.stop
        clips = config.log.proxy_clips if self.config.metric == PROXY_METRIC else 0
        self.measure = [self.config.metric, clips]
        """What the memory below is of: fewer clips give a larger distance."""
        self.max_steps = config.train.max_steps
        self.latest: float | None = None
        self.best: float | None = None
        self.best_step = 0
        self.sign_mean = 0.5
        self.steps_out_of_bounds = 0
        self.skipped = self.skipped_in_a_row = 0

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes the metric that target and plateau look at, where it was measured.

        Args:
            metrics: means over whole intervals.
        """
        value = metrics.get(self.config.metric)
        if value is None or not math.isfinite(value):
            return
        self.latest = value
        if self.best is None or value < self.best - abs(self.best) * self.config.plateau_delta:
            self.best, self.best_step = value, step

    def observe_sign(self, step: int, sign: float) -> None:
        """Keeps the running mean of D's sign statistic.

        Raises:
            DivergedError: it stayed out of bounds for as long as the configuration allows.
        """
        patience = self.config.sign_patience_steps
        self.sign_mean += (sign - self.sign_mean) / patience
        low, high = self.config.sign_bounds
        inside = low <= self.sign_mean <= high
        self.steps_out_of_bounds = 0 if inside else self.steps_out_of_bounds + 1
        if self.steps_out_of_bounds > patience:
            raise DivergedError(
                f"step {step}: the share of real clips that D scores above their fake partner, "
                f"{self.sign_mean:.3f} on average, has been outside stop.sign_bounds={[low, high]} "
                f"for {patience} steps"
            )

    def observe_skipped(self, step: int, error: NonFiniteError) -> None:
        """Counts a step that left a network as it was, because a gradient was not finite.

        Raises:
            NonFiniteError: there were `stop.nonfinite_steps` of them in a row.
        """
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.config.nonfinite_steps:
            raise NonFiniteError(
                f"{error}; no update for stop.nonfinite_steps={self.skipped_in_a_row} steps in a "
                "row"
            ) from error

    def observe_update(self) -> None:
        self.skipped_in_a_row = 0

    def metrics(self) -> dict[str, float]:
        return {"progress/skipped_steps": float(self.skipped)}

    def reason(self, step: int, epoch: float, seconds: float) -> str | None:
        """Why training ends after this step; None if it goes on."""
        config = self.config
        if step >= self.max_steps:
            return f"train.max_steps={self.max_steps}"
        if config.max_epochs and epoch >= config.max_epochs:
            return f"stop.max_epochs={config.max_epochs:g}"
        if config.max_seconds and seconds >= config.max_seconds:
            return f"stop.max_seconds={config.max_seconds:g}"
        if self.latest is not None and config.target is not None and self.latest <= config.target:
            return f"{config.metric}={self.latest:.4g} has reached stop.target={config.target:g}"
        waited = step - self.best_step
        if self.best is not None and config.plateau_steps and waited >= config.plateau_steps:
            return (
                f"{config.metric} has not improved on {self.best:.4g} for "
                f"stop.plateau_steps={config.plateau_steps} steps"
            )
        return None

    def state(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "latest": self.latest,
            "best": self.best,
            "best_step": self.best_step,
            "sign_mean": self.sign_mean,
            "steps_out_of_bounds": self.steps_out_of_bounds,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state.get("measure", self.measure) == self.measure:  # older checkpoints have none
            self.latest = state["latest"]
            self.best, self.best_step = state["best"], state["best_step"]
        self.sign_mean = state["sign_mean"]
        self.steps_out_of_bounds = state["steps_out_of_bounds"]
        self.skipped = state.get("skipped", 0)  # older checkpoints have none
        self.skipped_in_a_row = state.get("skipped_in_a_row", 0)
