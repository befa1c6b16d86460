"""What a comparison consists of, as data: its runs, and all that they have in common.

Saved as `compare.json` when a comparison starts, so that the same command goes on with it and
another one is refused. Folders: `runs/KIND-seedN` are ordinary run folders.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ValidationError

from distgan import storage
from distgan.compare.matching import KIND, KNOB, MatchedKind, match
from distgan.config import Config
from distgan.config_loading import build_config, flatten, with_values
from distgan.config_section import Section
from distgan.errors import UserError

PLAN = "compare.json"

FREE_ON_RESUME = (
    "cluster.", "storage.", "data.shards", "data.num_workers", "data.shards_in_flight",
    "data.cache_", "data.max_damaged_fraction", "preset", "prepare.num_processes",
)  # fmt: skip
"""Keys that change no figure; data.shards, too: the same data set may have moved."""


class Plan(Section):
    """The grid of kinds and seeds, and the configuration that all its runs share."""

    version: Literal[2] = 2
    kinds: tuple[MatchedKind, ...]
    seeds: tuple[int, ...]
    steps: int
    evaluations: int
    tolerance: float
    """Largest relative difference of two kinds' numbers of parameters, in each network."""
    demo_data: bool
    """The clips are the demo's, so it can be judged whether a clip is valid."""
    data_digest: str = ""
    """Of the data set's manifest; empty while the demo's data is not made yet."""
    config: Config
    """Of every run, but for kind, matching knob, seed and folder."""

    def run_config(self, output: str, kind: MatchedKind, seed: int) -> Config:
        """The whole configuration of one run."""
        folder = storage.join(output, "runs", f"{kind.kind}-seed{seed}")
        values = {KIND: kind.kind, KNOB: kind.mlp_width, "seed": seed, "run.dir": folder}
        return with_values(self.config, values)

    def grid(self) -> list[tuple[MatchedKind, int]]:
        """All runs, seed by seed: what is cut short has whole seeds of all kinds."""
        return [(kind, seed) for seed in self.seeds for kind in self.kinds]


def make_plan(
    config: Config,
    *,
    kinds: Sequence[str],
    num_seeds: int,
    steps: int,
    evaluations: int,
    tolerance: float,
    demo_data: bool,
) -> Plan:
    """Checks what is asked for and matches the kinds' parameters.

    Args:
        config: seeds count up from its seed; steps of 0 mean its train.max_steps.

    Raises:
        UserError: fewer than two kinds, an unknown one, one that does not fit the shapes, kinds
            that can't be matched, or a budget that can't be divided into the evaluations.
    """
    steps = steps or config.train.max_steps
    if num_seeds < 1:
        raise UserError(f"--seeds {num_seeds}: at least one seed is needed")
    _check_budget(steps, evaluations)
    base = _base_config(config, steps, evaluations)
    return Plan(
        kinds=match(base, kinds, tolerance),
        seeds=tuple(range(config.seed, config.seed + num_seeds)),
        steps=steps,
        evaluations=evaluations,
        tolerance=tolerance,
        demo_data=demo_data,
        config=base,
    )


def _check_budget(steps: int, evaluations: int) -> None:
    if evaluations < 2:
        raise UserError(f"--evaluations {evaluations}: at least 2 are needed to see a course")
    if steps < evaluations:
        raise UserError(
            f"--steps {steps} is less than --evaluations {evaluations}; raise it, or evaluate less"
        )
    if steps % evaluations:
        below = steps // evaluations * evaluations
        raise UserError(
            f"--steps {steps} is not a multiple of --evaluations {evaluations}, so the last "
            f"evaluation would miss the end; take {below} or {below + evaluations} steps"
        )


def _base_config(config: Config, steps: int, evaluations: int) -> Config:
    """The comparison decides when runs are measured and when they end; the rest is the user's."""
    if config.run.init_from:
        raise UserError(
            "run.init_from: kinds of attention have other weights, so they can't start from the "
            "same ones; leave it out"
        )
    if config.cluster.num_workers:
        raise UserError(
            f"cluster.num_workers={config.cluster.num_workers}: a run of a comparison trains in "
            "one process on one device; leave it out, and take --parallel N for N runs at a time"
        )
    interval = steps // evaluations
    log_interval = max(n for n in range(1, 11) if interval % n == 0)
    values: dict[str, Any] = {
        "seed": 0,
        "run.dir": "",
        "train.max_steps": steps,
        "log.interval_steps": log_interval,  # the clock is logged with every evaluation
        "log.proxy_interval_steps": interval,
        "log.sample_interval_steps": 0,
        "checkpoint.interval_steps": interval,
        "checkpoint.keep": 2,
        "stop.max_epochs": 0.0,
        "stop.max_seconds": 0.0,
        "stop.target": None,
        "stop.plateau_steps": 0,
    }
    return with_values(config, values)


def save_plan(output: str, plan: Plan) -> None:
    text = json.dumps(plan.model_dump(mode="json"), indent=1)
    storage.write_bytes(storage.join(output, PLAN), text.encode())


def load_plan(output: str) -> Plan | None:
    """The plan that a folder was made with; None if the folder is new or empty.

    Raises:
        UserError: the folder holds something else, or its plan is damaged.
    """
    path = storage.join(output, PLAN)
    if not storage.exists(path):
        if names := storage.list_names(output):
            raise UserError(
                f"--output {output} is not empty and holds no comparison ({PLAN} is missing, "
                f"{names[0]} is there); choose another folder"
            )
        return None
    try:
        tree: dict[str, Any] = json.loads(storage.read_bytes(path))
        return Plan.model_validate(tree | {"config": build_config(tree["config"])})
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise UserError(
            f"{path} is damaged or of another version: {error}; choose another folder"
        ) from error


def refuse_changes(output: str, saved: Plan, plan: Plan) -> None:
    """Raises `UserError`, naming what differs, if a command is not the one that began."""
    was, now = _facts(saved), _facts(plan)
    changes = [
        f"{name} (was {was.get(name)}, now {now.get(name)})"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]
    if changes:
        raise UserError(
            f"--output {output} holds a comparison with other settings: {', '.join(changes)}; "
            "take these values back, or choose another folder"
        )


def refuse_other_data(output: str, saved: Plan, digest: str, shards: str) -> None:
    """Raises `UserError` if the data set now is not the one that the comparison began with.

    Args:
        digest: of the manifest in `shards`.
    """
    if saved.data_digest and saved.data_digest != digest:
        raise UserError(
            f"--output {output} holds a comparison on another data set: its manifest has the "
            f"sha256 {saved.data_digest[:12]}..., the one in data.shards={shards} has "
            f"{digest[:12]}...; give data.shards the data set that it began with, wherever that "
            "lies now, or choose another folder"
        )


def _facts(plan: Plan) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "--kinds": ",".join(kind.kind for kind in plan.kinds),
        "--seeds": f"{len(plan.seeds)} from {plan.seeds[0]}",
        "--steps": plan.steps,
        "--evaluations": plan.evaluations,
        "--tolerance": plan.tolerance,
        "the demo's data": plan.demo_data,
    }
    for kind in plan.kinds:
        facts[f"{KNOB} of {kind.kind}"] = kind.mlp_width
    of_budget = ("train.max_steps", "log.interval_steps", "log.proxy_interval_steps",
                 "checkpoint.interval_steps")  # fmt: skip
    facts |= {
        key: value
        for key, value in flatten(plan.config).items()
        if key not in of_budget and not key.startswith(FREE_ON_RESUME)
    }
    return facts
