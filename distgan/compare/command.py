"""`launch.py compare`: plan, data, runs, costs, report; each part goes on where it was."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distgan import storage
from distgan.compare.jobs import ClipsJob, Job, MemoryJob, RunJob, SweepJob
from distgan.compare.plan import (
    Plan,
    load_plan,
    make_plan,
    refuse_changes,
    refuse_other_data,
    save_plan,
)
from distgan.compare.real_clips import REAL_CLIPS
from distgan.compare.report import write_report
from distgan.compare.runner import Executor, OneAfterAnother
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.data.manifest import read_manifest
from distgan.data.prepare import prepare
from distgan.data.prepare_report import summary
from distgan.data.stream import check_fits
from distgan.demo_run import NUM_VIDEOS, render_once
from distgan.errors import UserError
from distgan.precision import pick_device, pick_precision

DEFAULT_KINDS = ("additive", "dense", "sparse", "self", "factorised", "none")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for."""

    output: str
    kinds: tuple[str, ...] = DEFAULT_KINDS
    num_seeds: int = 3
    steps: int = 0
    """0 means train.max_steps."""
    evaluations: int = 10
    tolerance: float = 0.05
    demo_data: bool = False
    """The data set given is one of the demo's clips."""


def compare(request: Request, config: Config, executor: Executor | None = None) -> str:
    """Trains all runs that are not there yet, measures costs, writes the report.

    Args:
        config: with absolute paths; without `data.shards` the demo's data is made.

    Returns:
        The report's statement and where it lies.

    Raises:
        UserError: see `make_plan`; or the folder holds something else, or another comparison, or
            one on another data set.
        DistganError: a run's process failed.
    """
    storage.configure(config.storage)
    executor = executor or OneAfterAnother()
    saved = load_plan(request.output)
    makes_data = not config.data.shards
    if makes_data:
        config = with_values(config, {"data.shards": storage.join(request.output, "data")})
    else:
        check_fits(read_manifest(config.data.shards)[0], config.data, config.data.shards)
    plan = make_plan(
        _with_precision(config, saved, executor),
        kinds=request.kinds,
        num_seeds=request.num_seeds,
        steps=request.steps,
        evaluations=request.evaluations,
        tolerance=request.tolerance,
        demo_data=_can_judge_validity(config) and (makes_data or request.demo_data),
    )
    if saved is not None:
        refuse_changes(request.output, saved, plan)
    plan = _on_its_data(request.output, saved, plan, makes_data)
    executor.run(plan_jobs(plan, request.output))
    return write_report(plan, request.output)


def report_only(output: str) -> str:
    """Writes the report of a comparison again, from its folder alone.

    Raises:
        UserError: there is no comparison, or parts of it are missing.
    """
    plan = load_plan(output)
    if plan is None:
        raise UserError(f"--output {output} holds no comparison; start one without --report-only")
    storage.configure(plan.config.storage)
    missing = [job.name for job in plan_jobs(plan, output) if not job.is_done()]
    if missing:
        raise UserError(
            f"--output {output}: {len(missing)} parts are not done yet, the first is "
            f"{missing[0]!r}; run the command that began it again, without --report-only"
        )
    return write_report(plan, output)


def plan_jobs(plan: Plan, output: str) -> list[Job]:
    """Everything to do: what costs little first, so that a kind that can't run here is soon met."""
    clips = storage.join(output, REAL_CLIPS)
    jobs: list[Job] = [ClipsJob(name="keeping real clips", config=plan.config, result=clips)]
    for kind in plan.kinds:
        config = plan.run_config(output, kind, plan.seeds[0])
        costs = storage.join(output, "costs")
        memory = storage.join(costs, f"{kind.kind}.memory.json")
        tokens = storage.join(costs, f"{kind.kind}.tokens.json")
        jobs.append(MemoryJob(name=f"memory of {kind.kind}", config=config, result=memory))
        jobs.append(SweepJob(name=f"token sweep of {kind.kind}", config=config, result=tokens))
    for kind, seed in plan.grid():
        name = f"training of {kind.kind}, seed {seed}"
        config = plan.run_config(output, kind, seed)
        jobs.append(RunJob(name=name, config=config, demo_data=plan.demo_data))
    return jobs


def _with_precision(config: Config, saved: Plan | None, executor: Executor) -> Config:
    """All runs take the same: `auto` is asked once, and its answer stays."""
    if config.train.precision != "auto":
        return config
    if saved is not None:
        return with_values(config, {"train.precision": saved.config.train.precision})
    return with_values(config, {"train.precision": executor.ask(answer_precision, config)})


def answer_precision(config: Config) -> str:
    return pick_precision(config.train.precision, pick_device(config.train.device))


def _can_judge_validity(config: Config) -> bool:
    """The rules for valid clips know the demo's speed, a frame a step."""
    data = config.data
    return data.frame_stride == 1 and data.clip_frames >= 2 and data.resolution >= 16


def _on_its_data(output: str, saved: Plan | None, plan: Plan, makes_data: bool) -> Plan:
    """Makes the data if need be, and saves the plan with what names the data set."""
    shards = plan.config.data.shards
    if makes_data:
        begun = saved.data_digest if saved else ""
        save_plan(output, plan.model_copy(update={"data_digest": begun}))
        _make_data(output, plan.config)
    _, digest = read_manifest(shards)
    if saved is not None:
        refuse_other_data(output, saved, digest, shards)
    plan = plan.model_copy(update={"data_digest": digest})
    save_plan(output, plan)
    return plan


def _make_data(output: str, config: Config) -> None:
    """The demo's videos, prepared for this configuration."""
    videos = storage.join(output, "videos")
    print(f"rendering and preparing the demo's {NUM_VIDEOS} videos in {config.data.shards}")
    render_once(videos)
    print(summary(prepare(videos, config.data.shards, config)))


def request_of(output: str, demo_data: bool, given: Mapping[str, Any]) -> Request:
    """A request from command-line values; what was not given keeps its default."""
    fields: dict[str, Any] = {name: value for name, value in given.items() if name != "seeds"}
    if "seeds" in given:
        fields["num_seeds"] = given["seeds"]
    if "kinds" in given:
        names = (name.strip() for name in given["kinds"].split(","))
        fields["kinds"] = tuple(name for name in names if name)
    return Request(output=output, demo_data=demo_data, **fields)
