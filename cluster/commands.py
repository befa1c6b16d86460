"""The commands of `launch.py` that can work on a cluster: prepare, train, compare, doctor, submit.

Ray is imported only by those that are asked to use it.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.command_line import (
    Commands,
    add_command,
    add_config,
    config_of,
    sets,
    storage_options,
)
from distgan.errors import UserError

if TYPE_CHECKING:
    from distgan.config import Config

PREPARE_DETAILS = """
Works in processes of this machine (prepare.num_processes), or on Ray, so many videos at
a time: cluster.num_workers=N. RAY_ADDRESS names the cluster to join; without it, one is
started here for as long as the work lasts. The bytes that come out are the same.

Cut short by whatever, it goes on where it was when the same command is run again: what
is finished lies in OUTPUT/.prepare until all is done. Other settings or videos are
refused then, unless no video was finished yet; to start over, delete OUTPUT."""

COMPARE_DETAILS = """
All runs have one configuration and as many parameters; only the attention differs. Without
data.shards (and with --preset demo, which is then the default) the demo's videos are rendered and
prepared first. Runs train one after another, or N at a time on Ray (--parallel N): RAY_ADDRESS
names the cluster to join; without it, one is started here for as long as the work lasts.

OUTPUT/report.md and report.html say what came out. Cut short by whatever, it goes on where it was
when the same command is run again; other settings are refused then."""

SUBMIT_DETAILS = """
The cluster is the one whose dashboard RAY_API_SERVER_ADDRESS (or RAY_ADDRESS) names. This folder
travels there without runs, data and environments. Prints the job's output and ends with its exit
code. `ray job stop ID` then waits up to 600 s for a last checkpoint; after a plain `ray job submit
--working-dir . -- python launch.py train ...` Ray kills the job after 3 s, unless it was given
--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}'."""


def add_prepare(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Adds `prepare`."""
    prepare = add_command(
        commands, "prepare", "raw videos to a clean, packed data set", _prepare,
        details=PREPARE_DETAILS,
        example="prepare --input ~/videos --output data/mine data.resolution=64",
    )  # fmt: skip
    prepare.add_argument("--input", required=True, help="folder or URL with videos, nested or not")
    prepare.add_argument(
        "--output", required=True, help="folder or URL for the data set (new or empty)"
    )
    add_config(prepare)


def add_train(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Adds `train`."""
    train = add_command(
        commands, "train", "train a GAN; run it again to resume", _train,
        example="train --preset small-64 data.shards=data/mine seed=1",
    )  # fmt: skip
    add_config(train)


def add_compare(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Adds `compare`."""
    compare = add_command(
        commands, "compare", "train kinds of attention under one budget", _compare,
        details=COMPARE_DETAILS,
        example="compare --output compare --kinds self,none --seeds 2 --steps 400",
    )  # fmt: skip
    compare.add_argument("--output", default="compare", help="folder or URL for all of it "
                         "(default: compare)")  # fmt: skip
    compare.add_argument("--kinds", metavar="A,B,...", help="kinds of attention, at least two "
                         "(default: additive,dense,sparse,self,factorised,none)")  # fmt: skip
    compare.add_argument("--seeds", type=int, metavar="N", help="runs of each kind; their seeds "
                         "count up from the key seed (default: 3)")  # fmt: skip
    compare.add_argument("--steps", type=int, metavar="N", help="training steps of each run "
                         "(default: the key train.max_steps)")  # fmt: skip
    compare.add_argument("--evaluations", type=int, metavar="N", help="measurements of each run; "
                         "must divide its steps (default: 10)")  # fmt: skip
    compare.add_argument("--tolerance", type=float, metavar="SHARE", help="largest relative "
                         "difference of a network's parameters (default: 0.05)")  # fmt: skip
    compare.add_argument("--demo-data", action="store_true", help="data.shards holds the demo's "
                         "clips: also tell the share of valid ones")  # fmt: skip
    compare.add_argument("--parallel", type=int, metavar="N", help="runs at a time, on Ray, each "
                         "with cluster.cpus_per_worker CPUs, and a GPU if there are any (default: "
                         "one after another, without Ray)")  # fmt: skip
    compare.add_argument("--report-only", action="store_true", help="write the report of a "
                         "finished comparison again")  # fmt: skip
    add_config(compare)


def add_doctor(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Adds `doctor`."""
    doctor = add_command(
        commands, "doctor", "check this machine, and what a configuration needs", _doctor,
        example="doctor --preset base-128",
    )  # fmt: skip
    add_config(doctor)


def add_submit(
    commands: "Commands[argparse.ArgumentParser]",
    make_parser: Callable[[], argparse.ArgumentParser],
) -> None:
    """Adds `submit`, whose arguments are another command line that `make_parser` understands."""

    def run(arguments: argparse.Namespace) -> int:
        return _submit(arguments, make_parser())

    submit = add_command(
        commands, "submit", "run a command on a Ray cluster, as a job", run,
        details=SUBMIT_DETAILS,
        example="submit -- train cluster.num_workers=4 run.dir=s3://bucket/run",
    )  # fmt: skip
    submit.add_argument("--no-wait", action="store_true", help="return when the job is submitted, "
                        "not when it has ended")  # fmt: skip
    submit.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- COMMAND ...",
                        help="the command line, without `python launch.py`")  # fmt: skip


def _prepare(arguments: argparse.Namespace) -> int:
    from distgan.data.prepare import prepare
    from distgan.data.prepare_report import summary
    from distgan.interrupts import sigterm_interrupts
    from distgan.paths import absolute

    config = config_of(arguments)
    source, output = absolute(arguments.input), absolute(arguments.output)
    executor = None
    if config.cluster.num_workers:
        from cluster.prepare import OnRay

        executor = OnRay(config.cluster.num_workers, (source, output))
    with sigterm_interrupts():
        manifest = prepare(source, output, config, executor=executor)
    print(summary(manifest))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    return run_training(config_of(arguments))


def run_training(config: "Config") -> int:
    """Trains, here or on a cluster; says how it ended, and returns the exit code."""
    from distgan.metrics.writer import tensorboard_command

    if not config.data.shards:
        raise UserError("data.shards is not set: give the folder that `launch.py prepare` wrote")
    if config.cluster.num_workers:
        from cluster.job import train_on_cluster as train
    else:
        from distgan.local import train_locally as train
    outcome = train(config)
    print(f"stopped at step {outcome.step}: {outcome.reason}")
    print(f"look at it with: {tensorboard_command(config.run.dir)}")
    return 128 + outcome.signal if outcome.signal else 0


def _compare(arguments: argparse.Namespace) -> int:
    from distgan.compare.command import compare, request_of
    from distgan.compare.runner import Executor
    from distgan.interrupts import sigterm_interrupts
    from distgan.paths import absolute

    output = absolute(arguments.output)
    given = {
        name: getattr(arguments, name)
        for name in ("kinds", "seeds", "steps", "evaluations", "tolerance", "parallel")
        if getattr(arguments, name) is not None
    }
    if arguments.report_only:
        return _report_again(arguments, output, given)
    if not (arguments.preset or arguments.config or sets(arguments, "data.shards")):
        arguments.preset = "demo"
    config = config_of(arguments)
    executor: Executor | None = None
    if "parallel" in given:
        from cluster.compare import OnRay

        executor = OnRay(given.pop("parallel"), config, (output, config.data.shards or output))
    with sigterm_interrupts():
        print(compare(request_of(output, arguments.demo_data, given), config, executor))
    return 0


def _report_again(arguments: argparse.Namespace, output: str, given: dict[str, object]) -> int:
    from distgan import storage
    from distgan.compare.command import report_only

    others = [f"--{name}" for name in given]
    others += ["--preset"] * bool(arguments.preset) + ["--config"] * bool(arguments.config)
    if others:
        raise UserError(
            f"--report-only takes its settings from the saved runs; leave out {', '.join(others)}"
        )
    storage.configure(storage_options(arguments))
    print(report_only(output))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from distgan.doctor import report

    config = config_of(arguments)
    print(report(config), flush=True)
    if config.cluster.num_workers >= 1:
        from cluster.parity import check_parity

        parity = check_parity(config)
        print(parity)
        if not parity.passed:
            print("launch.py doctor: take other ZeRO stages in cluster.generator and cluster."
                  "discriminator, or the DeepSpeed of pyproject.toml", file=sys.stderr)  # fmt: skip
            return 1
    print("all is well")
    return 0


def _submit(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    inner = arguments.arguments[1:] if arguments.arguments[:1] == ["--"] else arguments.arguments
    from cluster.submit import check_travels, submit

    check_travels(parser.parse_args(inner))
    return submit(inner, Path(__file__).parent.parent, wait=not arguments.no_wait)
