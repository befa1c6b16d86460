"""Stop rules by table: the first that holds, none before its time, and memory that goes round."""

import json
from typing import Any

import pytest

from distgan.errors import DivergedError
from distgan.stopping import StopRules
from tests.tiny_networks import tiny_config

METRIC = "quality/proxy_frechet_ema"


def rules(values: dict[str, Any] | None = None) -> StopRules:
    return StopRules(tiny_config({"log.proxy_interval_steps": 1} | (values or {})))


@pytest.mark.parametrize(
    ("values", "step", "epoch", "seconds", "reason"),
    [
        ({}, 99, 1e6, 1e9, None),
        ({}, 100, 0.0, 0.0, "train.max_steps=100"),
        ({}, 101, 0.0, 0.0, "train.max_steps=100"),
        ({"stop.max_epochs": 2.5}, 5, 2.49, 0.0, None),
        ({"stop.max_epochs": 2.5}, 5, 2.5, 0.0, "stop.max_epochs=2.5"),
        ({"stop.max_seconds": 60}, 5, 0.0, 59.9, None),
        ({"stop.max_seconds": 60}, 5, 0.0, 60.0, "stop.max_seconds=60"),
        ({"stop.max_seconds": 60, "stop.max_epochs": 1}, 5, 1.0, 99.0, "stop.max_epochs=1"),
        ({"stop.target": 1e9}, 5, 0.0, 0.0, None),  # nothing was measured yet
        ({"stop.plateau_steps": 1}, 50, 0.0, 0.0, None),
    ],
)
def test_limits(
    values: dict[str, Any], step: int, epoch: float, seconds: float, reason: str | None
) -> None:
    assert rules(values).reason(step, epoch, seconds) == reason


@pytest.mark.parametrize(
    ("measured", "stops"), [([5.0], False), ([5.0, 2.0], True), ([2.0, 5.0], False), ([1.9], True)]
)
def test_the_target_looks_at_the_latest_value(measured: list[float], stops: bool) -> None:
    stop = rules({"stop.target": 2.0})
    for step, value in enumerate(measured, 1):
        stop.observe(step, {METRIC: value, "loss/generator": -1e9})
    reason = stop.reason(len(measured), 0.0, 0.0)
    assert (reason is not None) == stops
    assert reason is None or "stop.target=2" in reason


def first_stop(values: list[float], **more: Any) -> int | None:
    stop = rules({"stop.plateau_steps": 3, "stop.plateau_delta": 0.1} | more)
    for step, value in enumerate(values, 1):
        stop.observe(step, {METRIC: value})
        if stop.reason(step, 0.0, 0.0):
            return step
    return None


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([10, 8, 7, 6, 5, 4], None),
        ([10, 10, 10, 10, 10], 4),
        ([10, 9.5, 9.2, 9.1, 9.05], 4),  # improvements too small to count
        ([10, 9.5, 9.2, 8.9, 8.9, 8.9, 8.9], 7),  # small ones add up: the best is the old one
        ([10, 5, 50, 50, 50], 5),
        # A metric below zero has to fall further to improve.
        ([-10, -10.5, -10.9, -9.5, -10.2], 4),
        ([-10, -11.5, -13, -15, -17, -19], None),
        ([0.0, 0.0, 0.0, 0.0], 4),
        # What could not be measured neither improves nor blocks what comes after it.
        ([float("nan"), 10, 8, 6, 5, 4, 3], None),
        ([10, float("nan"), float("nan"), float("nan")], 4),
    ],
)
def test_a_plateau_ends_training(values: list[float], step: int | None) -> None:
    assert first_stop(values) == step


def test_a_plateau_is_counted_in_steps_not_in_measurements() -> None:
    stop = rules({"stop.plateau_steps": 10})
    stop.observe(5, {METRIC: 1.0})
    assert stop.reason(14, 0.0, 0.0) is None
    reason = stop.reason(15, 0.0, 0.0)
    assert reason is not None and "stop.plateau_steps=10" in reason


def test_any_logged_metric_may_be_watched() -> None:
    stop = rules({"stop.metric": "loss/generator", "stop.target": 0.5})
    stop.observe(1, {METRIC: 0.1})
    assert stop.reason(1, 0.0, 0.0) is None
    stop.observe(2, {"loss/generator": 0.5})
    assert stop.reason(2, 0.0, 0.0) is not None


def steps_until_diverged(signs: list[float], patience: int, bounds: list[float]) -> int | None:
    stop = rules({"stop.sign_patience_steps": patience, "stop.sign_bounds": bounds})
    for step, sign in enumerate(signs, 1):
        try:
            stop.observe_sign(step, sign)
        except DivergedError as error:
            assert f"step {step}" in str(error) and "stop.sign_bounds" in str(error)
            return step
    return None


def test_the_sign_statistic_must_leave_its_bounds_and_stay_out() -> None:
    assert steps_until_diverged([1.0] * 1000, 10, [0.1, 0.9]) is not None
    assert steps_until_diverged([0.0] * 1000, 10, [0.1, 0.9]) is not None
    assert steps_until_diverged([0.5] * 1000, 10, [0.1, 0.9]) is None
    assert steps_until_diverged([1.0, 0.0] * 500, 10, [0.1, 0.9]) is None
    # The mean passes 0.9 when 1 - 0.5 * 0.9^n > 0.9, at n = 16; then it may stay out ten steps.
    assert steps_until_diverged([1.0] * 1000, 10, [0.1, 0.9]) == 16 + 10
    # Coming back inside in between starts the count anew.
    assert steps_until_diverged([1.0] * 20 + [0.0] * 5 + [1.0] * 15, 10, [0.1, 0.9]) is None


@pytest.mark.parametrize("sign", [0.0, 1.0])
def test_without_bounds_nothing_diverges(sign: float) -> None:
    assert steps_until_diverged([sign] * 5000, 3, [0.0, 1.0]) is None


@pytest.mark.parametrize(
    "changed", [{"stop.metric": "loss/generator"}, {"log.proxy_clips": 32}], ids=str
)
def test_what_was_measured_otherwise_is_forgotten(changed: dict[str, Any]) -> None:
    """All these keys may differ when a run is taken up again."""
    one = rules()
    one.observe(1, {METRIC: 1.0})
    limits = {"stop.target": 2.0, "stop.plateau_steps": 1, "log.interval_steps": 1}
    same, other = rules(limits), rules(limits | changed)
    for stop in (same, other):
        stop.load_state(json.loads(json.dumps(one.state())))
    assert same.reason(50, 0.0, 0.0) is not None and other.reason(50, 0.0, 0.0) is None
    other.observe(51, {other.config.metric: 9.0})
    assert other.reason(51, 0.0, 0.0) is None


def test_memory_goes_round_through_json() -> None:
    values = {
        "stop.plateau_steps": 6,
        "stop.sign_patience_steps": 5,
        "stop.sign_bounds": [0.2, 0.8],
    }
    one = rules(values)
    for step in range(1, 5):
        one.observe(step, {METRIC: 10.0 - step})
        one.observe_sign(step, 1.0)
    other = rules(values)
    other.load_state(json.loads(json.dumps(one.state(), allow_nan=False)))
    ends = []
    for stop in (one, other):
        for step in range(5, 40):
            stop.observe(step, {METRIC: 6.0})
            try:
                stop.observe_sign(step, 1.0)
            except DivergedError:
                ends.append(("diverged", step, stop.state()))
                break
            assert stop.reason(step, 0.0, 0.0) is None or step >= 10
    assert len(ends) == 2 and ends[0] == ends[1]
