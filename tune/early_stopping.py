"""Which trials are stopped before their end: Ray Tune's rules, asked one evaluation at a time.

asha: asynchronous successive halving (Li et al. 2020). median: worse than the median of the others'
running means (Golovin et al. 2017). A rule's memory follows from the evaluations that it was told,
so a sweep that goes on tells it again those of before.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from tune.records import SweepSpec

_STEP = "step"
_WORST = 1e30
"""Stands for values that are not finite: percentiles of infinities would be NaN."""


class StoppingRule(Protocol):
    """Judges trials by the sweep's first metric."""

    def stops(self, trial_id: str, step: int, value: float) -> bool:
        """Takes note of an evaluation; whether the trial ends with it."""
        ...


class NoStopping:
    """Every trial trains to its end."""

    def stops(self, trial_id: str, step: int, value: float) -> bool:
        return False


class RayStopping:
    """One of Ray Tune's schedulers that looks at nothing but results."""

    def __init__(self, scheduler: TrialScheduler, metric: str, mode: str) -> None:
        self.scheduler, self.metric = scheduler, metric
        self.worst = _WORST if mode == "min" else -_WORST
        self.trials: dict[str, _Trial] = {}

    def stops(self, trial_id: str, step: int, value: float) -> bool:
        controller: Any = _Controller()
        if trial_id not in self.trials:
            self.trials[trial_id] = _Trial(trial_id)
            self.scheduler.on_trial_add(controller, self._as_ray(trial_id))
        value = value if math.isfinite(value) else self.worst
        result = {_STEP: step, self.metric: value}
        decision = self.scheduler.on_trial_result(controller, self._as_ray(trial_id), result)
        return decision in (TrialScheduler.STOP, TrialScheduler.PAUSE)

    def _as_ray(self, trial_id: str) -> Any:
        return self.trials[trial_id]


def stopping_rule(spec: SweepSpec, evaluation_steps: int) -> StoppingRule:
    """The rule that `spec.algorithm` asks for.

    Args:
        evaluation_steps: steps from one evaluation to the next; a trial is not judged before.
    """
    metric = spec.metrics[0]
    if "asha" in spec.algorithm:
        asha = AsyncHyperBandScheduler(
            time_attr=_STEP,
            metric=metric.name,
            mode=metric.mode,
            max_t=spec.max_steps + 1,  # who gets to the end is not stopped there
            grace_period=min(spec.grace_steps or evaluation_steps, spec.max_steps),
            reduction_factor=spec.reduction_factor,
        )
        return RayStopping(asha, metric.name, metric.mode)
    if "median" in spec.algorithm:
        median = MedianStoppingRule(
            time_attr=_STEP,
            metric=metric.name,
            mode=metric.mode,
            grace_period=spec.grace_steps or max(spec.max_steps // 3, 1),
            hard_stop=False,  # it would not bear to hear more of a trial that it has stopped
        )
        return RayStopping(median, metric.name, metric.mode)
    return NoStopping()


@dataclass(frozen=True)
class _Trial:
    """What the rules look at of a trial; equal ids are the same trial."""

    trial_id: str


class _Controller:
    """What the rules ask of Tune: no trial waits for a place that another one should give up."""

    def get_live_trials(self) -> list[Any]:
        return []
