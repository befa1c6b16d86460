"""A trial that goes on as a copy of another: both networks, optimizers, average and counters."""

import json

from distgan import storage
from distgan.checkpoint import COMMITTED, checkpoint_folder
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.errors import DistganError
from distgan.run_folder import DIVERGED, save_config, saved_config

_COPIED = "copied.json"


def copy_state(parent_dir: str, step: int, config: Config) -> None:
    """Makes the run in `config.run.dir` go on from another run's checkpoint, with `config`.

    Stopped half-way it can be done again; done, it does nothing. Logged metrics up to the step
    stay the run's own.

    Raises:
        DistganError: the other run no longer has that checkpoint.
    """
    run_dir = config.run.dir
    mark = json.dumps({"parent": parent_dir, "step": step}).encode()
    marked = storage.join(run_dir, _COPIED)
    if storage.exists(marked) and storage.read_bytes(marked) == mark:
        return
    source, target = checkpoint_folder(parent_dir, step), checkpoint_folder(run_dir, step)
    parent = saved_config(parent_dir)
    if parent is None or not storage.exists(storage.join(source, COMMITTED)):
        raise DistganError(f"{source} is gone, and {run_dir} was to go on from it; raise "
                           "checkpoint.keep and start a new sweep")  # fmt: skip
    storage.remove_tree(storage.join(run_dir, "checkpoints"))
    for name in [*(n for n in storage.list_names(source) if n != COMMITTED), COMMITTED]:
        data = storage.read_bytes(storage.join(source, name), max_bytes=None)
        storage.write_bytes(storage.join(target, name), data)
    if storage.exists(storage.join(run_dir, DIVERGED)):
        storage.remove(storage.join(run_dir, DIVERGED))
    answers = {
        "train.precision": parent.train.precision,
        "train.schedule_steps": parent.train.schedule_steps,
    }
    save_config(with_values(config, answers))
    storage.write_bytes(marked, mark)
