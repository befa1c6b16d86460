"""Sweep folders made by hand: what `launch.py tune` leaves behind, without training anything."""

import math

import numpy as np

from distgan.config_loading import load_config, with_values
from distgan.metrics.writer import MetricsWriter
from distgan.run_folder import save_config
from tests.tiny import TINY
from tune.records import BASE, SweepSpec, TrialRecord, trial_folder, write_record, write_spec

METRIC = "quality/proxy_frechet_ema"
COST = "time/step_s"
LR, KIND, HEADS = "optim.generator.lr", "model.attention.kind", "model.attention.heads"
SPACE: dict[str, dict[str, list[object]]] = {
    LR: {"loguniform": [1e-5, 1e-2]},
    KIND: {"choice": ["self", "none"]},
    HEADS: {"randint": [1, 9]},
}
STEPS = (0, 4, 8, 12)


def spec_of(**values: object) -> SweepSpec:
    defaults: dict[str, object] = {"space": SPACE, "max_steps": 12, "num_trials": 12}
    return SweepSpec.model_validate(defaults | values)


def start_sweep(folder: str, spec: SweepSpec, data: str = "") -> None:
    """A sweep's folder with its base configuration and no trial yet."""
    config = load_config(overrides=TINY)
    config = with_values(config, {"run.dir": folder, "data.shards": data})
    save_config(config)
    write_spec(folder, spec)


def record(group: str, value: float | None, **fields: object) -> TrialRecord:
    """A finished trial, but for what `fields` say."""
    defaults: dict[str, object] = {
        "trial_id": f"{group}-s{fields.get('seed', 0)}",
        "group": group,
        "overrides": {},
        "seed": 0,
        "status": "finished",
        "reason": "train.max_steps=12",
        "step": 12,
        "values": {} if value is None else {METRIC: value},
        "seconds": 3.0,
    }
    return TrialRecord(**(defaults | fields))  # type: ignore[arg-type]


def add_trial(folder: str, trial: TrialRecord) -> None:
    """The trial's record, and a curve that falls to its values."""
    write_record(folder, trial)
    values = {name: value for name, value in trial.values.items() if math.isfinite(value)}
    with MetricsWriter(trial_folder(folder, trial.trial_id)) as writer:
        for step in STEPS[: STEPS.index(trial.step) + 1] if values else ():
            late = 1 + 4 * (1 - step / trial.step) if trial.step else 1
            writer.scalars(step, {name: value * late for name, value in values.items()})


def synthetic_value(overrides: dict[str, object], luck: float = 0.0) -> float:
    """A proxy distance whose optimum is lr = 3e-4 with attention, of 40."""
    distance = math.log10(float(overrides[LR]) / 3e-4)  # type: ignore[arg-type]
    return 40 * (1 + distance**2) * (1.0 if overrides[KIND] == "self" else 1.4) * math.exp(luck)


def make_sweep(
    folder: str, *, trials: int = 12, repeats: int = 1, data: str = "", **spec: object
) -> None:
    """A sweep with a base, finished, stopped, diverged, failed and pruned trials."""
    start_sweep(folder, spec_of(num_trials=trials, repeats=repeats, **spec), data)
    generator = np.random.default_rng(0)
    for repeat in range(repeats):
        value = 90 * math.exp(0.03 * generator.normal())
        add_trial(folder, record(BASE, value, seed=repeat))
    for index in range(trials):
        overrides = {
            LR: float(10 ** generator.uniform(-5, -2)),
            KIND: str(generator.choice(["self", "none"])),
            HEADS: int(generator.integers(1, 9)),
        }
        for repeat in range(repeats):
            fields: dict[str, object] = {"overrides": overrides, "seed": repeat}
            if overrides[LR] > 5e-3:  # type: ignore[operator]
                fields |= {"status": "diverged", "step": 4, "reason": "a gradient is not finite"}
            value = synthetic_value(overrides, 0.03 * generator.normal())
            add_trial(folder, record(f"g{index:03d}", value, **fields))
