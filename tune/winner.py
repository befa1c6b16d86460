"""What is done with a sweep's winner: its generator is exported, or it is trained anew."""

import hashlib
import re
from collections.abc import Sequence

import torch

from distgan import storage
from distgan.config import Config
from distgan.config_loading import flatten, parse_overrides, with_values
from distgan.errors import UserError
from distgan.export import load_generator, write_export
from distgan.run_folder import differing_keys
from tune.overview import best_config, load_sweep
from tune.ranking import best_trial
from tune.records import trial_folder

EXPORT = "best_generator"
_LONGEST = 80  # characters of a name that a user may have to type


def export_winner(folder: str) -> tuple[str, str, int]:
    """Writes the generator of the winner's best trial to best_generator/ in the sweep's folder.

    Returns:
        The folder of the export, the trial, and the step that its generator is of.

    Raises:
        UserError: no trial has a value yet, or the winner's has left no generator.
    """
    sweep = load_sweep(folder)
    best_config(sweep)  # refuses a sweep without a winner
    assert sweep.winner is not None
    trial = best_trial(sweep.spec, sweep.winner)
    try:
        trained = load_generator(trial_folder(folder, trial.trial_id), torch.device("cpu"))
    except UserError as error:
        raise UserError(f"{error}; or train the winner anew with --retrain {folder}") from error
    target = storage.join(folder, EXPORT)
    write_export(target, trained)
    return target, trial.trial_id, trained.step


def retrained_config(folder: str, overrides: Sequence[str]) -> Config:
    """What trains the winner from its start: best.yaml, changed, in a run folder of its own.

    That is best/ in the sweep's folder. What makes it another run goes into the folder's name, such
    as best-seed7, so that each can be there, and the same command goes on with each.

    Args:
        overrides: such as "train.max_steps=20000" or "seed=7".

    Raises:
        UserError: no trial has a value yet, or an override is bad.
    """
    best, changes = best_config(load_sweep(folder)), parse_overrides(overrides)
    config = with_values(best, changes)
    if "run.dir" in changes:
        return config
    values = flatten(config)
    differing = [f"-{key}{values[key]}" for key in differing_keys(best, config)]
    return with_values(config, {"run.dir": best.run.dir + _as_name("".join(differing))})


def _as_name(text: str) -> str:
    """A part of a file's name that tells texts apart; one that is long ends in its digest."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", text)
    if name == text and len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
