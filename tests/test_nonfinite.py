"""Gradients that are not finite update nothing; a run heals from what passes, and no more."""

from pathlib import Path
from typing import Any

import pytest
import torch

from distgan.adversarial_step import MicroBatch
from distgan.checkpoint import committed_steps, load_newest
from distgan.config_loading import load_config
from distgan.data.stream import ClipStream
from distgan.errors import DivergedError
from distgan.local import build_trainer
from distgan.metrics.writer import read_metrics
from distgan.run_folder import DIVERGED
from distgan.trainer import Trainer
from tests.tiny import TINY


class NoSignal:
    received = None


def trainer(data: str, run: Path, *more: str) -> Trainer:
    config = load_config(
        overrides=[*TINY, f"data.shards={data}", f"run.dir={run}", "stop.nonfinite_steps=2", *more]
    )
    stream = ClipStream(data, config.data, seed=0, batch_size=config.train.batch_size)
    return build_trainer(config, torch.device("cpu"), stream, show_progress=False)


def spoil(trainer: Trainer, steps: list[int], *, network: str, times: int = 10**9) -> None:
    """Makes the loss of one network NaN at these steps, as often as `times` in all."""
    loss_of = getattr(trainer.adversarial, f"{network}_loss")
    left = [times]

    def spoilt(batch: MicroBatch) -> Any:
        loss, metrics = loss_of(batch)
        if batch.step in steps and left[0]:
            left[0] -= 1
            loss = loss * float("nan")
        return loss, metrics

    setattr(trainer.adversarial, f"{network}_loss", spoilt)


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    checkpoint, problems = load_newest(str(run))
    assert checkpoint is not None and not problems
    return checkpoint.tensors


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_one_bad_step_is_left_out_and_counted(
    network: str, tiny_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = trainer(tiny_data, tmp_path / "run")
    spoil(one, [6], network=network)
    assert one.run(NoSignal()).step == 12
    lines = {line["step"]: line for line in read_metrics(str(tmp_path / "run" / "metrics.jsonl"))}
    assert lines[5]["progress/skipped_steps"] == 0 and lines[12]["progress/skipped_steps"] == 1
    assert "loss/generator" not in lines[6] and "loss/generator" in lines[7]
    assert f"gradient norm of the {network}" in capsys.readouterr().out
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(tmp_path / "run").values())


def test_what_passes_leaves_no_trace(tiny_data: str, tmp_path: Path) -> None:
    """Two bad steps in a row send the run back; it then equals one that never had them."""
    trainer(tiny_data, tmp_path / "calm").run(NoSignal())
    other = trainer(tiny_data, tmp_path / "other")
    spoil(other, [6, 7], network="generator", times=2)
    other.run(NoSignal())
    calm, healed = (tensors_of(tmp_path / name) for name in ("calm", "other"))
    assert calm.keys() == healed.keys()
    assert all(torch.equal(calm[name], healed[name]) for name in calm)
    steps = [line["step"] for line in read_metrics(str(tmp_path / "other" / "metrics.jsonl"))]
    assert steps == list(range(1, 13))


def test_what_comes_again_ends_the_run(tiny_data: str, tmp_path: Path) -> None:
    one = trainer(tiny_data, tmp_path)
    spoil(one, [6, 7], network="discriminator")
    with pytest.raises(DivergedError, match=r"step 7.*stop.nonfinite_steps=2"):
        one.run(NoSignal())
    assert (tmp_path / DIVERGED).exists()
    assert committed_steps(str(tmp_path)) == [4]


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(
    tiny_data: str, tmp_path: Path
) -> None:
    one = trainer(tiny_data, tmp_path)
    spoil(one, [1, 2], network="discriminator", times=2)
    with pytest.raises(DivergedError, match="step 2"):
        one.run(NoSignal())
