"""Checkpoints: how one process writes them at once, tensors of every kind, what two must share."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distgan.checkpoint import Checkpoint, checkpoint_folder, read_checkpoint, whole
from distgan.saving import Saver
from distgan.team import Alone

STATE: dict[str, Any] = {"step": 3, "seconds": 1.5, "stream": {"samples": 12}, "best": None}


def save_checkpoint(
    run_dir: str, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int
) -> str:
    """Returns the folder of the committed checkpoint."""
    saver = Saver(run_dir, keep, Alone())
    saver.begin(step, whole(tensors), dict(state))
    saver.finish()
    return checkpoint_folder(run_dir, step)


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(4, 6, generator=generator)
    return {
        "generator/weight": matrix,
        "generator/low": matrix.bfloat16(),
        "generator/wide": matrix.double(),
        "generator/image": torch.randn(2, 3, 4, 4, generator=generator).to(
            memory_format=torch.channels_last
        ),
        "generator/turned": matrix.T,
        "generator.optimizer/weight/step": torch.tensor(7.0),
        "count": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "pixels": torch.arange(9, dtype=torch.uint8),
        "none": torch.zeros(0, 3),
    }


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
        assert torch.equal(got[name], tensor), name


def save(run: Path, step: int, keep: int = 9) -> Path:
    return Path(save_checkpoint(str(run), step, tensors(step), STATE | {"step": step}, keep=keep))


def weights_of(folder: str | Path, rank: int = 0) -> Path:
    """The file of a rank's pieces in a checkpoint's folder."""
    (file,) = Path(folder).glob(f"rank-{rank:05d}-*.safetensors")
    return file


def kept_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its counters, without what a clock measured; settings such as the run's folder may differ."""
    left_out = ("seconds", "compute_seconds", "config")
    return {name: value for name, value in checkpoint.state.items() if name not in left_out}


def state_hash(run_dir: Path, step: int) -> str:
    """Over every tensor of the checkpoint (networks, optimizers, average) and its counters."""
    checkpoint = read_checkpoint(checkpoint_folder(str(run_dir), step), step)
    digest = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(json.dumps(kept_state(checkpoint), sort_keys=True).encode())
    return digest.hexdigest()
