"""The command line of distgan: `python launch.py COMMAND --help` explains each command."""

import argparse
import errno
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.errors import DistganError, UserError
from distgan.interpreter import check_interpreter

if TYPE_CHECKING:
    from distgan.config import Config, StorageConfig

# Errors of local files that are the user's to mend; others are faults and keep their traceback.
REMEDIES = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EROFS: "it is read-only; choose another folder",
    errno.EACCES: "choose another folder, or let this user read and write there",
    errno.EPERM: "choose another folder, or let this user read and write there",
    errno.EEXIST: "a file is where a folder is needed; choose another folder",
    errno.ENOTDIR: "a file is where a folder is needed; choose another folder",
    errno.EISDIR: "a folder is where a file is needed; move it away",
    errno.ENAMETOOLONG: "choose a shorter one",
}

EXAMPLES = {
    "demo": "python launch.py demo --output demo",
    "prepare": "python launch.py prepare --input ~/videos --output data/mine data.resolution=64",
    "data": "python launch.py data verify --data data/mine",
    "data verify": "python launch.py data verify --data s3://bucket/data",
    "data show": "python launch.py data show --data data/mine --output data_sheet.png",
    "data index": "python launch.py data index --data data/others",
    "train": "python launch.py train --preset small-64 data.shards=data/mine seed=1",
    "generate": "python launch.py generate --run runs/small-64-0 --output out --num 8 --seed 100",
    "compare": "python launch.py compare --output compare --kinds self,none --seeds 2 --steps 400",
    "doctor": "python launch.py doctor --preset base-128",
    "tune": "python launch.py tune --preset demo data.shards=data/mine --space optimizer "
    "--algorithm asha --num-trials 30",
    "submit": "python launch.py submit -- train cluster.num_workers=4 run.dir=s3://bucket/run",
}

DETAILS = {
    "prepare": """
Works in processes of this machine (prepare.num_processes), or on Ray, so many videos at
a time: cluster.num_workers=N. RAY_ADDRESS names the cluster to join; without it, one is
started here for as long as the work lasts. The bytes that come out are the same.

Cut short by whatever, it goes on where it was when the same command is run again: what
is finished lies in OUTPUT/.prepare until all is done. Other settings or videos are
refused then, unless no video was finished yet; to start over, delete OUTPUT.""",
    "compare": """
All runs have one configuration and as many parameters; only the attention differs. Without
data.shards (and with --preset demo, which is then the default) the demo's videos are rendered and
prepared first. Runs train one after another, or N at a time on Ray (--parallel N): RAY_ADDRESS
names the cluster to join; without it, one is started here for as long as the work lasts.

OUTPUT/report.md and report.html say what came out. Cut short by whatever, it goes on where it was
when the same command is run again; other settings are refused then.""",
    "submit": """
The cluster is the one whose dashboard RAY_API_SERVER_ADDRESS (or RAY_ADDRESS) names. This folder
travels there without runs, data and environments. Prints the job's output and ends with its exit
code. `ray job submit --working-dir . -- python launch.py train ...` works just as well.""",
    "tune": """
Each trial trains as `launch.py train` does; cluster.num_workers is of each trial (0: in one
process). The base configuration is always a trial too. Run it again to go on: what ended is not
trained again.

A space is a YAML file of configuration keys, such as
  optim.generator.lr: {loguniform: [1e-5, 1e-3]}
  model.attention.kind: {choice: [none, self]}
with choice, uniform, quniform, loguniform, randint or grid; or a ready one: attention, optimizer,
both. random, grid and pbt's first members follow from the seed alone; so does what tpe suggests
with --max-concurrent 1. Nothing is promised for which trials asha, median and pbt stop or copy
while several run at a time: that depends on which comes first.""",
    "data verify": """
Reads and decodes everything, in worker processes. Ends with exit code 0 if the data
set is sound; else with 2, after a line for each problem: shard, sample, what is wrong.""",
    "data show": """
The picture holds a film strip a clip, of clips spread over the whole data set.""",
    "data index": """
For WebDataset tars that prepare did not make, or whose manifest.json was lost. They
must be named shard-*.tar and hold KEY.mp4 or KEY.npy (and optionally KEY.json), with
square clips of one size and length.""",
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; commands import what they need only when they run."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="Trains attention-based video GANs: prepare videos, train, generate.",
        epilog="New here? Run `python launch.py demo` and look at the pictures it makes.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = _add(commands, "demo", "render small videos, train on them, show what came out", _demo)
    demo.add_argument(
        "--output", default="demo", help="folder or URL for all of it (default: demo)"
    )
    _add_overrides(demo)

    prepare = _add(commands, "prepare", "raw videos to a clean, packed data set", _prepare)
    prepare.add_argument("--input", required=True, help="folder or URL with videos, nested or not")
    prepare.add_argument(
        "--output", required=True, help="folder or URL for the data set (new or empty)"
    )
    _add_config(prepare)

    _add_data(commands)

    train = _add(commands, "train", "train a GAN; run it again to resume", _train)
    _add_config(train)

    generate = _add(commands, "generate", "make new videos with a trained generator", _generate)
    generate.add_argument(
        "--run", required=True, help="run folder or URL, or an exported generator"
    )
    generate.add_argument("--output", required=True, help="folder or URL for the new videos")
    generate.add_argument("--num", type=int, default=8, help="how many videos (default: 8)")
    generate.add_argument("--seed", type=int, default=0, help="seed of the first video; the next "
                          "ones count up from it (default: 0)")  # fmt: skip
    generate.add_argument("--truncation", type=float, default=1.0, help="0 to 1: less than 1 gives "
                          "safer, more alike videos (default: 1)")  # fmt: skip
    generate.add_argument("--input", help="folder or URL with videos whose first frames are "
                          "given, for a generator trained with "
                          "conditioning.task=prediction")  # fmt: skip
    generate.add_argument("--show-attention", action="store_true", help="also draw where chosen "
                          "tokens of the first video look, for each attention layer of the "
                          "generator")  # fmt: skip
    _add_storage_overrides(generate)

    _add_compare(commands)

    doctor = _add(commands, "doctor", "check this machine, and what a configuration needs", _doctor)
    _add_config(doctor)

    _add_tune(commands)

    submit = _add(commands, "submit", "run a command on a Ray cluster, as a job", _submit)
    submit.add_argument("--no-wait", action="store_true", help="return when the job is submitted, "
                        "not when it has ended")  # fmt: skip
    submit.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- COMMAND ...",
                        help="the command line, without `python launch.py`")  # fmt: skip
    return parser


def _add_tune(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from tune.options import add_options

    tune = _add(commands, "tune", "search hyperparameters with many trials", _tune)
    instead = tune.add_mutually_exclusive_group()
    for action, (text, _) in SWEEP_ACTIONS.items():
        instead.add_argument(f"--{action}", metavar="RUN", help=f"instead of a sweep: {text}")
    add_options(tune)
    _add_config(tune)


def _add_data(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`data` with commands of its own, which look at a data set that is there."""
    data = _add(commands, "data", "check, show or index a data set", None)
    inner = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    text = "check every byte and clip of a data set against its manifest"
    verify = _add(inner, "data verify", text, _data_verify)
    text = "print a data set's facts and draw some of its clips"
    show = _add(inner, "data show", text, _data_show)
    text = "write the manifest of shards that have none"
    index = _add(inner, "data index", text, _data_index)

    for parser in (verify, show, index):
        parser.add_argument("--data", required=True, help="folder or URL of the data set")
    for parser in (verify, index):
        parser.add_argument("--processes", type=int, default=0, metavar="N", help="worker "
                            "processes; 1 works without any (default: one a CPU core)")  # fmt: skip
    show.add_argument("--output", default="data_sheet.png", help="PNG file or URL for the picture "
                      "(default: data_sheet.png)")  # fmt: skip
    for parser in (verify, show, index):
        _add_storage_overrides(parser)


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = _add(commands, "compare", "train kinds of attention under one budget", _compare)
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
                         "difference of numbers of parameters (default: 0.05)")  # fmt: skip
    compare.add_argument("--demo-data", action="store_true", help="data.shards holds the demo's "
                         "clips: also tell the share of valid ones")  # fmt: skip
    compare.add_argument("--parallel", type=int, metavar="N", help="runs at a time, on Ray, each "
                         "with cluster.cpus_per_worker CPUs, and a GPU if there are any (default: "
                         "one after another, without Ray)")  # fmt: skip
    compare.add_argument("--report-only", action="store_true", help="write the report of a "
                         "finished comparison again")  # fmt: skip
    _add_config(compare)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        check_interpreter()
    except UserError as error:
        print(f"launch.py: {error}", file=sys.stderr)
        return error.exit_code
    parsed = build_parser().parse_args(arguments)
    command = f"{parsed.command} {getattr(parsed, 'data_command', '')}".strip()
    try:
        return int(parsed.handler(parsed))
    except DistganError as error:
        print(f"launch.py {command}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        what = f"{error.filename or 'a file'}: {error.strerror}"
        print(f"launch.py {parsed.command}: {what}; {REMEDIES[error.errno]}", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt as error:
        print(f"launch.py {command}: interrupted", file=sys.stderr)
        return int(getattr(error, "exit_code", 130))  # 143 after SIGTERM


def _demo(arguments: argparse.Namespace) -> int:
    from distgan import storage
    from distgan.config_loading import load_config
    from distgan.demo_run import run_demo
    from distgan.paths import absolute

    storage.configure(load_config("demo", overrides=arguments.overrides).storage)
    return run_demo(absolute(arguments.output), arguments.overrides)


def _prepare(arguments: argparse.Namespace) -> int:
    from distgan.data.prepare import prepare
    from distgan.data.prepare_report import summary
    from distgan.interrupts import sigterm_interrupts
    from distgan.paths import absolute

    config = _config(arguments)
    source, output = absolute(arguments.input), absolute(arguments.output)
    executor = None
    if config.cluster.num_workers:
        from cluster.prepare import OnRay

        executor = OnRay(config.cluster.num_workers, (source, output))
    with sigterm_interrupts():
        manifest = prepare(source, output, config, executor=executor)
    print(summary(manifest))
    return 0


def _data_verify(arguments: argparse.Namespace) -> int:
    from distgan.data.verify import verify
    from distgan.paths import absolute

    _configure_storage(arguments)
    folder = absolute(arguments.data)
    manifest, problems = verify(folder, processes=arguments.processes)
    for problem in problems:
        print(problem)
    facts = f"{manifest.samples} samples in {len(manifest.shards)} shards"
    if not problems:
        print(f"sound: {facts} of {folder} are what the manifest says")
        return 0
    print(f"launch.py data verify: {len(problems)} problems in {folder} ({facts}); copy the shards "
          "named above again from where they were prepared, or prepare the data set again into an "
          "empty folder", file=sys.stderr)  # fmt: skip
    return UserError.exit_code


def _data_show(arguments: argparse.Namespace) -> int:
    from distgan.data.show import show
    from distgan.paths import absolute

    _configure_storage(arguments)
    print(show(absolute(arguments.data), absolute(arguments.output)))
    return 0


def _data_index(arguments: argparse.Namespace) -> int:
    from distgan.data.indexing import index
    from distgan.paths import absolute

    _configure_storage(arguments)
    folder = absolute(arguments.data)
    manifest = index(folder, processes=arguments.processes)
    clip = manifest.clip
    print(f"indexed {manifest.samples} clips in {len(manifest.shards)} shards of {folder}: "
          f"{clip.stored_frames} frames of {clip.resolution}x{clip.resolution}, "
          f"{clip.clip_format}")  # fmt: skip
    print(f"look at them with: python launch.py data show --data {folder}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    return _run_training(_config(arguments))


def _run_training(config: "Config") -> int:
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


def _tune(arguments: argparse.Namespace) -> int:
    for action, (_, handler) in SWEEP_ACTIONS.items():
        if getattr(arguments, action):
            return handler(arguments)
    from tune.options import given_options
    from tune.results import write_results
    from tune.settings import make_spec
    from tune.space import read_space
    from tune.sweep import run_sweep

    config = _config(arguments, folder="sweeps")
    spec = make_spec(config, read_space(arguments.space), given_options(arguments))
    outcome = run_sweep(config, spec)
    print(write_results(config.run.dir))
    if not outcome.is_complete:
        print(f"stopped; run the same command again to go on in {config.run.dir}")
    return 128 + outcome.signal if outcome.signal else 0


def _tune_status(arguments: argparse.Namespace) -> int:
    from tune.overview import status

    print(status(_sweep_folder(arguments, arguments.status)))
    return 0


def _tune_report(arguments: argparse.Namespace) -> int:
    from tune.results import write_results

    print(write_results(_sweep_folder(arguments, arguments.report)))
    return 0


def _tune_export(arguments: argparse.Namespace) -> int:
    from tune.winner import export_winner

    target, trial, step = export_winner(_sweep_folder(arguments, arguments.export))
    print(f"the generator of {trial} at step {step} is in {target}; make videos with:")
    print(f"python launch.py generate --run {shlex.quote(target)} --output OUT")
    return 0


def _tune_retrain(arguments: argparse.Namespace) -> int:
    from distgan import storage
    from distgan.config_loading import load_config
    from distgan.paths import absolute
    from tune.winner import retrained_config

    about_storage = [text for text in arguments.overrides if text.startswith("storage.")]
    storage.configure(load_config(overrides=about_storage).storage)
    return _run_training(retrained_config(absolute(arguments.retrain), arguments.overrides))


def _sweep_folder(arguments: argparse.Namespace, folder: str) -> str:
    """The folder of a sweep that is there, ready to be read."""
    from distgan.paths import absolute

    _configure_storage(arguments)
    return absolute(folder)


SWEEP_ACTIONS = {
    "status": ("show the trials of a sweep so far, from its folder or URL", _tune_status),
    "report": ("write its results anew: report.md, best.yaml, tables, plots", _tune_report),
    "export": ("copy the winner's generator to best_generator/ in its folder", _tune_export),
    "retrain": ("train the winner from its start in the folder best/ in its folder; overrides, "
                "such as train.max_steps=20000, count", _tune_retrain),
}  # fmt: skip


def _generate(arguments: argparse.Namespace) -> int:
    from distgan.generate import generate
    from distgan.paths import absolute

    made = generate(
        absolute(arguments.run),
        absolute(arguments.output),
        num=arguments.num,
        seed=arguments.seed,
        truncation=arguments.truncation,
        input_folder=absolute(arguments.input) if arguments.input else None,
        storage_options=_storage_options(arguments),
        show_attention=arguments.show_attention,
    )
    print(made.summary())
    return 0


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
    if not (arguments.preset or arguments.config or _sets(arguments, "data.shards")):
        arguments.preset = "demo"
    config = _config(arguments)
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
    storage.configure(_storage_options(arguments))
    print(report_only(output))
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    inner = arguments.arguments[1:] if arguments.arguments[:1] == ["--"] else arguments.arguments
    from cluster.submit import check_travels, submit

    check_travels(build_parser().parse_args(inner))
    return submit(inner, Path(__file__).parent, wait=not arguments.no_wait)


def _doctor(arguments: argparse.Namespace) -> int:
    from distgan.doctor import report

    config = _config(arguments)
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


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], int] | None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name.split()[-1],
        help=text,
        description=f"{text[0].upper()}{text[1:]}.\n{DETAILS.get(name, '')}".strip(),
        epilog=f"example: {EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run is not None:
        parser.set_defaults(handler=run)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    from distgan.presets import PRESETS

    parser.add_argument("--preset", choices=sorted(PRESETS), help="named starting point")
    parser.add_argument("--config", type=Path, help="YAML file with configuration keys")
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="configuration keys, such as seed=3 or model.attention.kind=none; all keys with what "
        "they mean are in distgan/config.py",
    )


def _add_storage_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="storage.KEY=VALUE", help="how to talk to "
                        "object storage, such as storage.endpoint_url=URL")  # fmt: skip


def _sets(arguments: argparse.Namespace, key: str) -> bool:
    return any(override.partition("=")[0].strip() == key for override in arguments.overrides)


def _storage_options(arguments: argparse.Namespace) -> "StorageConfig":
    """The storage section, for commands that take no other keys."""
    from distgan.config_loading import load_config

    for override in arguments.overrides:
        if not override.startswith("storage."):
            raise UserError(
                f"override {override!r}: {arguments.command} takes keys of the storage section only"
            )
    return load_config(overrides=arguments.overrides).storage


def _configure_storage(arguments: argparse.Namespace) -> None:
    from distgan import storage

    storage.configure(_storage_options(arguments))


def _config(arguments: argparse.Namespace, folder: str = "runs") -> "Config":
    """The checked configuration, with absolute paths and a run folder."""
    from distgan.config_loading import load_config, with_values
    from distgan.paths import absolute

    config = load_config(arguments.preset, arguments.config, arguments.overrides)
    run_dir = config.run.dir or f"{folder}/{config.preset}-{config.seed}"
    paths = {
        "run.dir": run_dir,
        "run.init_from": config.run.init_from,
        "data.shards": config.data.shards,
        "data.cache_dir": config.data.cache_dir,
    }
    return with_values(config, {k: absolute(p) if p else "" for k, p in paths.items()})


if __name__ == "__main__":
    sys.exit(main())
