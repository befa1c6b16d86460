"""Gradients that are not finite update nothing; a run heals from what passes, and no more."""

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from distgan import storage
from distgan.adversarial_step import MicroBatch
from distgan.checkpoint import checkpoint_folder, committed_steps, load_newest, read_checkpoint
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


def test_times_are_means_over_the_steps_that_were_timed(tiny_data: str, tmp_path: Path) -> None:
    """Also in an interval that an earlier start began, or that was gone through twice."""
    several = ("log.interval_steps=4", "checkpoint.interval_steps=2", "train.schedule_steps=8")

    def divisors(*more: str, spoilt: Sequence[int] = ()) -> list[int]:
        one = trainer(tiny_data, tmp_path / "run", *several, *more)
        spoil(one, list(spoilt), network="generator", times=len(spoilt))
        read, seen = one.timer.read, []
        one.timer.read = lambda steps: seen.append(steps) or read(steps)  # type: ignore[method-assign, func-returns-value]
        one.run(NoSignal())
        return seen

    assert divisors("train.max_steps=6") == [4, 2]
    assert divisors("train.max_steps=8") == [2]
    shutil.rmtree(tmp_path / "run")
    assert divisors("train.max_steps=8", spoilt=[3, 4]) == [4 + 2, 4]


def test_a_loss_that_is_not_finite_counts_though_its_gradient_is(
    tiny_data: str, tmp_path: Path
) -> None:
    one = trainer(tiny_data, tmp_path)
    loss_of = one.adversarial.generator_loss

    def raised(batch: MicroBatch) -> Any:
        loss, metrics = loss_of(batch)
        return loss + float("inf"), metrics

    one.adversarial.generator_loss = raised  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="gradient norm of the generator"):
        one.run(NoSignal())


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


@pytest.mark.parametrize("bad", [[6, 7], [8, 9]], ids=["between checkpoints", "at a checkpoint"])
def test_what_passes_leaves_no_trace(bad: list[int], tiny_data: str, tmp_path: Path) -> None:
    """Two bad steps in a row send the run back; it then equals one that never had them. Where a
    checkpoint falls due at the first of them, it must not be what the run goes back to."""
    trainer(tiny_data, tmp_path / "calm").run(NoSignal())
    other = trainer(tiny_data, tmp_path / "other")
    spoil(other, bad, network="generator", times=2)
    other.run(NoSignal())
    calm, healed = (tensors_of(tmp_path / name) for name in ("calm", "other"))
    assert calm.keys() == healed.keys()
    assert all(torch.equal(calm[name], healed[name]) for name in calm)
    steps = [line["step"] for line in read_metrics(str(tmp_path / "other" / "metrics.jsonl"))]
    assert steps == list(range(1, 13))


def test_a_checkpoint_that_is_due_at_a_bad_step_is_made_at_the_next_good_one(
    tiny_data: str, tmp_path: Path
) -> None:
    one = trainer(tiny_data, tmp_path)
    spoil(one, [8], network="generator")
    one.run(NoSignal())
    assert committed_steps(str(tmp_path)) == [4, 9, 12]


@pytest.mark.parametrize("file", ["rank-00000", "manifest.json"])
def test_going_back_waits_for_the_checkpoint_that_is_being_written(
    file: str,
    tiny_data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is whole then, and the one to go back to."""
    write_bytes, at_work = storage.write_bytes, threading.Event()

    def write(path: str, data: bytes) -> None:
        if f"00000008/{file}" in path and not at_work.is_set():
            at_work.set()
            while one.step < 10:
                time.sleep(0.01)
            time.sleep(1)
        write_bytes(path, data)

    one = trainer(tiny_data, tmp_path)
    monkeypatch.setattr(storage, "write_bytes", write)
    spoil(one, [9, 10], network="generator", times=2)
    assert one.run(NoSignal()).step == 12
    assert at_work.is_set()
    assert "from step 8" in capsys.readouterr().out
    assert committed_steps(str(tmp_path)) == [4, 8, 12]
    for step in (8, 12):
        read_checkpoint(checkpoint_folder(str(tmp_path), step), step)


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
