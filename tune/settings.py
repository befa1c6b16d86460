"""A sweep's settings: from the command line, and against those that its folder was made with."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from distgan import storage
from distgan.config import Config
from distgan.config_loading import dump_yaml, flatten
from distgan.errors import UserError
from distgan.run_folder import CONFIG, differing_keys, saved_config
from tune.population import read_generations
from tune.records import SWEEP, MetricSpec, SweepSpec, read_spec, write_spec
from tune.space import Space

DEFAULT_TRIALS: int = SweepSpec.model_fields["num_trials"].default
_QUALITY = "quality/"
"""Metrics that are measured every log.proxy_interval_steps."""

# What may differ when a sweep goes on: none of it changes a trial.
FREE_ON_RESUME = (
    "num_trials", "max_seconds", "max_concurrent", "max_failures", "gpus_per_trial", "keep",
)  # fmt: skip


def make_spec(config: Config, space: Mapping[str, object], given: Mapping[str, Any]) -> SweepSpec:
    """The resolved sweep.

    Args:
        given: what the command line sets of a `SweepSpec`; metrics as texts NAME, NAME:min or
            NAME:max.

    Raises:
        UserError: a value is out of its range.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    checked = Space(space, config)
    if settings.get("metrics"):
        settings["metrics"] = tuple(_metric(text) for text in settings["metrics"])
    settings["num_trials"] = _num_trials(checked, settings)
    try:
        spec = SweepSpec.model_validate(
            settings
            | {
                "space": {key: d.as_tree() for key, d in checked.keys.items()},
                "seed": config.seed,
                "max_steps": config.train.max_steps,
            }
        )
    except ValidationError as error:
        lines = [
            f"--{str(problem['loc'][0]).replace('_', '-')} {problem['input']!r}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise UserError("; ".join(lines)) from error
    _check_metrics(config, spec)
    if spec.algorithm == "pbt":
        wanted = spec.perturbation_steps or -(-spec.max_steps // 5)
        every = evaluation_steps(config, spec)
        spec = spec.model_copy(update={"perturbation_steps": -(-wanted // every) * every})
    return spec


def _num_trials(space: Space, settings: Mapping[str, Any]) -> int:
    """No more than there are unlike configurations: the same training again would tell nothing."""
    algorithm, given = settings.get("algorithm"), settings.get("num_trials")
    if algorithm and "grid" in algorithm:
        return len(space.grid()) if given is None else int(given)
    wanted = DEFAULT_TRIALS if given is None else int(given)
    if algorithm == "pbt" or wanted < 1:
        return wanted
    there = space.count(wanted)
    if not there:
        raise UserError("the search space holds the base configuration alone; add values")
    if there < wanted:
        print(f"the search space holds {there} configurations beside the base one: "
              f"--num-trials is {there}, not {wanted}", flush=True)  # fmt: skip
    return there


def evaluation_steps(config: Config, spec: SweepSpec) -> int:
    """Steps from one evaluation of the first metric to the next, as far as the name tells."""
    if spec.metrics[0].name.startswith(_QUALITY):
        return config.log.proxy_interval_steps
    return config.log.interval_steps


def start_or_resume(config: Config, spec: SweepSpec) -> None:
    """Raises `UserError` if the folder holds something else, or another sweep."""
    folder = config.run.dir
    if not storage.exists(storage.join(folder, SWEEP)):
        there = [name for name in storage.list_names(folder) if name != ".lock"]
        if storage.is_local(folder) and storage.local_path(folder).is_file():
            raise UserError(f"run.dir={folder} is a file; choose another folder")
        if there:
            raise UserError(
                f"run.dir={folder} is not empty and holds no sweep ({SWEEP} is missing); choose "
                "another folder"
            )
        return
    before = read_spec(folder).model_dump(mode="json")
    now = spec.model_dump(mode="json")
    differing = [k for k in now if now[k] != before[k] and k not in FREE_ON_RESUME]
    counted = spec.algorithm == "pbt" or "grid" in spec.algorithm
    if counted and now["num_trials"] != before["num_trials"]:
        differing.append("num_trials")
    changes = [f"{key} (was {before[key]}, now {now[key]})" for key in differing]
    saved = saved_config(folder)
    if saved is not None:
        was, is_now = flatten(saved), flatten(config)
        changes += [
            f"{key} (was {was[key]}, now {is_now[key]})" for key in differing_keys(saved, config)
        ]
    if changes:
        raise UserError(
            f"run.dir={folder} was made by another sweep: {', '.join(changes)}; take these values "
            "back, or start a new sweep with another run.dir"
        )
    read_generations(folder)


def save_settings(config: Config, spec: SweepSpec) -> None:
    folder = config.run.dir
    storage.write_bytes(storage.join(folder, CONFIG), dump_yaml(config).encode())
    write_spec(folder, spec)  # last: with it the folder is a sweep's


def _metric(text: str) -> MetricSpec:
    name, colon, mode = text.rpartition(":")
    if not colon:
        return MetricSpec(name=text)
    if mode not in ("min", "max"):
        raise UserError(f"--metric {text}: write NAME, NAME:min or NAME:max")
    return MetricSpec.model_validate({"name": name, "mode": mode})


def _check_metrics(config: Config, spec: SweepSpec) -> None:
    names = [metric.name for metric in spec.metrics]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--metric {name} comes twice; give each metric once")
    interval = config.log.proxy_interval_steps
    for name in names:
        if name.startswith(_QUALITY) and not 0 < interval <= config.train.max_steps:
            raise UserError(
                f"--metric {name} is measured every log.proxy_interval_steps={interval} steps, "
                f"never within train.max_steps={config.train.max_steps}; set an interval of some "
                "steps"
            )
