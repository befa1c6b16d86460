"""`launch.py tune`: a sweep, and what can be asked of one that is there."""

import argparse
import shlex

from cluster.commands import run_training
from distgan.command_line import Commands, add_command, add_config, config_of, configure_storage

DETAILS = """
Each trial trains as `launch.py train` does; cluster.num_workers is of each trial (0: in one
process). The base configuration is always a trial too. Run it again to go on: what ended is not
trained again.

A space is a YAML file of configuration keys, such as
  optim.generator.lr: {loguniform: [1e-5, 1e-3]}
  model.attention.kind: {choice: [none, self]}
with choice, uniform, quniform, loguniform, randint or grid; or a ready one: attention, optimizer,
both. What random and grid try follows from the seed alone; so does a whole pbt sweep, as members
wait for each other, and what tpe suggests with --max-concurrent 1. Nothing is promised for which
trials asha and median stop while several run at a time: that depends on which comes first."""


def add_tune(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Adds `tune`."""
    from tune.options import add_options

    tune = add_command(
        commands, "tune", "search hyperparameters with many trials", _tune, details=DETAILS,
        example="tune --preset demo data.shards=data/mine --space optimizer "
        "--algorithm asha --num-trials 30",
    )  # fmt: skip
    instead = tune.add_mutually_exclusive_group()
    for action, (text, _) in SWEEP_ACTIONS.items():
        instead.add_argument(f"--{action}", metavar="RUN", help=f"instead of a sweep: {text}")
    add_options(tune)
    add_config(tune)


def _tune(arguments: argparse.Namespace) -> int:
    for action, (_, handler) in SWEEP_ACTIONS.items():
        if getattr(arguments, action):
            return handler(arguments)
    from tune.options import given_options
    from tune.results import write_results
    from tune.settings import make_spec
    from tune.space import read_space
    from tune.sweep import run_sweep

    config = config_of(arguments, folder="sweeps")
    spec = make_spec(config, read_space(arguments.space), given_options(arguments))
    outcome = run_sweep(config, spec)
    print(write_results(config.run.dir))
    outcome.refuse_all_bad()  # only now: the results say what became of each
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
    return run_training(retrained_config(absolute(arguments.retrain), arguments.overrides))


def _sweep_folder(arguments: argparse.Namespace, folder: str) -> str:
    """The folder of a sweep that is there, ready to be read."""
    from distgan.paths import absolute

    configure_storage(arguments)
    return absolute(folder)


SWEEP_ACTIONS = {
    "status": ("show the trials of a sweep so far, from its folder or URL", _tune_status),
    "report": ("write its results anew: report.md, best.yaml, tables, plots", _tune_report),
    "export": ("copy the winner's generator to best_generator/ in its folder", _tune_export),
    "retrain": ("train the winner from its start in the folder best/ in its folder, longer with "
                "train.max_steps=20000, say; with seed=7, in best-seed7/", _tune_retrain),
}  # fmt: skip
