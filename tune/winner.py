"""What is done with a sweep's winner: its generator is exported, or it is trained anew."""

from collections.abc import Sequence

import torch

from distgan import storage
from distgan.config import Config
from distgan.config_loading import parse_overrides, with_values
from distgan.errors import UserError
from distgan.export import load_generator, write_export
from tune.overview import best_config, load_sweep
from tune.ranking import best_trial
from tune.records import trial_folder

EXPORT = "best_generator"


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
    """What trains the winner from its start, in a run folder of its own: best.yaml, changed.

    Args:
        overrides: such as "train.max_steps=20000".

    Raises:
        UserError: no trial has a value yet, or an override is bad.
    """
    return with_values(best_config(load_sweep(folder)), parse_overrides(overrides))
