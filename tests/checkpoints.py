"""Checkpoints of one process, written at once."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distgan.checkpoint import checkpoint_folder, whole
from distgan.saving import Saver
from distgan.team import Alone


def save_checkpoint(
    run_dir: str, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int
) -> str:
    """Returns the folder of the committed checkpoint."""
    saver = Saver(run_dir, keep, Alone())
    saver.begin(step, whole(tensors), dict(state))
    saver.finish()
    return checkpoint_folder(run_dir, step)
