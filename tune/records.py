"""What lies in a sweep's folder, and how it is read and written.

    sweep.yaml          the sweep, resolved: a SweepSpec
    config.yaml         the base configuration, which trials override
    trials/TRIAL_ID/    a run folder as `launch.py train` makes it, and trial.json: a TrialRecord
    ray/                Ray Tune's own records; nothing here reads them back

Everything that a rerun needs is in the first three; all of it is JSON or YAML.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

import yaml
from pydantic import Field, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from distgan import storage
from distgan.config_loading import MOST_YAML_BYTES, parse_yaml
from distgan.config_section import Section
from distgan.errors import UserError

SWEEP, CONFIG, TRIALS, TRIAL = "sweep.yaml", "config.yaml", "trials", "trial.json"
TUNE = "ray"

Status = Literal["running", "finished", "stopped", "pruned", "diverged", "failed"]
Algorithm = Literal[
    "random", "grid", "tpe", "asha", "grid+asha", "tpe+asha", "median", "grid+median", "tpe+median",
    "pbt",
]  # fmt: skip
BASE = "base"
"""Group of the trials of the base configuration itself."""


class MetricSpec(Section):
    """A logged metric (a key of metrics.jsonl) and where it is better."""

    name: str = "quality/proxy_frechet_ema"
    mode: Literal["min", "max"] = "min"


class SweepSpec(Section):
    """What a sweep does: the content of sweep.yaml."""

    space: dict[str, dict[str, list[JsonValue]]]
    """Dotted configuration key -> one distribution, such as {"choice": ["self", "none"]} or
    {"loguniform": [1e-5, 1e-3]}; see tune/space.py."""
    algorithm: Algorithm = "random"
    """How configurations are chosen, and after the plus sign which trials are stopped early; asha
    and median alone choose by chance, pbt changes configurations while they train."""
    metrics: Annotated[tuple[MetricSpec, ...], Field(min_length=1)] = (MetricSpec(),)
    """The first one is what trials are stopped, copied and ranked by; more make the search
    multi-objective (tpe)."""
    num_trials: int = Field(16, ge=1)
    """Configurations that are tried, beside the base configuration (of pbt: the population)."""
    repeats: int = Field(1, ge=1)
    """Trials of each configuration, with the seeds seed, seed + 1, ..."""
    seed: int = Field(0, ge=0)
    """Seed of the suggestions, and of each configuration's first trial."""
    max_steps: int = Field(1, ge=1)
    """Steps of a trial that is not stopped early (train.max_steps of the base configuration)."""
    max_seconds: float = Field(0.0, ge=0)
    """Wall time of this start of the sweep; 0 means no limit."""
    max_concurrent: int = Field(0, ge=0)
    """Trials at a time; 0 means as many as the cluster has room for."""
    max_failures: int = Field(2, ge=0)
    """So many faults of a trial are met by going on from its checkpoint; then it has failed."""
    gpus_per_trial: float = Field(1.0, gt=0, le=1)
    """Share of a GPU of a trial in one process, where there are GPUs."""
    grace_steps: int = Field(0, ge=0)
    """Steps that no trial is stopped before (asha, median); 0: one evaluation (asha), a third of
    max_steps (median)."""
    reduction_factor: int = Field(3, ge=2)
    """asha: one in so many trials goes on from a rung to the next, which is as many times later."""
    perturbation_steps: int = Field(0, ge=0)
    """pbt: steps between copies of the better trials' state; 0: a fifth of max_steps."""
    keep: int = Field(3, ge=1)
    """Checkpoints and exported generators of the best so many configurations stay (with several
    metrics, also of all that none beats in each), and those of trials that go on. Of others,
    metrics, events, samples and the configuration stay."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """How one trial is, or ended: the content of trial.json."""

    trial_id: str
    """The name of its folder: its group, and its seed."""
    overrides: dict[str, JsonValue]
    """Dotted configuration keys -> sampled values, without the seed."""
    seed: int
    group: str
    """Equal for trials that differ only in their seed; `BASE` for the base configuration."""
    status: Status
    """finished: it came to its own end (train.max_steps or a stop rule). stopped: by the
    algorithm, early. pruned: never started, as its combination is impossible. running: it runs, or
    was running when the sweep was interrupted."""
    reason: str
    """Why it finished, was stopped, was pruned, diverged or failed."""
    step: int
    """Of its last evaluation, 0 before the first; of a diverged one, where it diverged."""
    values: dict[str, float]
    """The sweep's metrics as they were logged last up to `step`. The last, not the best: this is
    what its checkpoint and its exported generator give, and the least of many noisy evaluations
    would flatter. Empty before the first evaluation."""
    seconds: float
    """Training time, over all starts."""
    parent: str = ""
    """pbt: the trial whose state it copied last."""


def trial_folder(folder: str, trial_id: str) -> str:
    return storage.join(folder, TRIALS, trial_id)


def write_spec(folder: str, spec: SweepSpec) -> None:
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
    storage.write_bytes(storage.join(folder, SWEEP), text.encode())


def read_spec(folder: str) -> SweepSpec:
    """Raises `UserError` if there is no sweep in the folder, or sweep.yaml is damaged."""
    path = storage.join(folder, SWEEP)
    try:
        text = storage.read_bytes(path, max_bytes=MOST_YAML_BYTES).decode()
        return SweepSpec.model_validate(parse_yaml(text, path))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no sweep ({SWEEP} is missing); give its folder") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}; put the file back") from error


def write_record(folder: str, record: TrialRecord) -> None:
    """Readers see the record before or the new one, never half of one."""
    tree = _RECORD.dump_python(record, mode="json")
    tree["values"] = {name: _to_json(value) for name, value in record.values.items()}
    text = json.dumps(tree, indent=1, allow_nan=False)
    path = storage.join(trial_folder(folder, record.trial_id), TRIAL)
    storage.write_bytes(path, text.encode())


def read_record(folder: str, trial_id: str) -> TrialRecord | None:
    """None if the trial has no record; `UserError` if it is damaged."""
    path = storage.join(trial_folder(folder, trial_id), TRIAL)
    try:
        tree = json.loads(storage.read_bytes(path))
        return _RECORD.validate_python(_with_floats(tree))
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError, TypeError) as error:
        remedy = f"remove {trial_folder(folder, trial_id)}, and a rerun repeats that trial"
        raise UserError(f"{path} is damaged: {error}; {remedy}") from error


def read_sweep(folder: str) -> tuple[SweepSpec, list[TrialRecord]]:
    """The sweep and its trials so far, in the order of their names (the base configuration last).

    Raises:
        UserError: there is no sweep in the folder, or a file of it is damaged.
    """
    spec = read_spec(folder)
    names = storage.list_names(storage.join(folder, TRIALS))
    records = (read_record(folder, name) for name in names)
    return spec, [record for record in records if record is not None]


_RECORD = TypeAdapter(TrialRecord)


def _to_json(value: float) -> float | str:
    """As in metrics.jsonl: "nan", "inf" and "-inf" are texts."""
    return value if abs(value) < float("inf") else str(value)


def _with_floats(tree: Mapping[str, object]) -> dict[str, object]:
    values = tree.get("values")
    if not isinstance(values, dict):
        raise ValueError("it holds no values")
    return dict(tree) | {"values": {name: float(value) for name, value in values.items()}}
