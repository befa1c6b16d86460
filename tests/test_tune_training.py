"""A trial's training: it halts at evaluations, stops at that very step, and changes no number."""

from pathlib import Path

import pytest

from distgan import storage
from distgan.checkpoint import checkpoint_folder, committed_steps
from distgan.config import Config
from distgan.config_loading import load_config, with_values
from distgan.errors import DistganError, DivergedError
from distgan.local import train_locally
from distgan.metrics.writer import read_metrics
from distgan.run_folder import mark_diverged, saved_config
from tests.checkpoints import weights_of
from tests.cluster_runs import assert_same_run
from tests.tiny import TINY
from tune.copying import copy_state
from tune.records import MetricSpec
from tune.training import STOP, End, Evaluation, Training, UnmeasuredError

METRIC = MetricSpec()
LOSS = MetricSpec(name="loss/generator")


def config_for(data: str, run: Path, *more: str) -> Config:
    measured = ("log.proxy_interval_steps=5", "log.proxy_clips=16", "log.interval_steps=2")
    keys = [*TINY, *measured, f"data.shards={data}", f"run.dir={run}", *more]
    return load_config(overrides=keys)


def to_the_end(training: Training) -> tuple[list[Evaluation], End]:
    evaluations: list[Evaluation] = []
    while isinstance(event := training.next(), Evaluation):
        evaluations.append(event)
    return evaluations, event


def test_halting_changes_nothing(tiny_data: str, tmp_path: Path) -> None:
    config = config_for(tiny_data, tmp_path / "trial")
    evaluations, end = to_the_end(Training(config, [METRIC, LOSS]))
    assert end.error is None and end.outcome is not None and end.outcome.step == 12
    train_locally(with_values(config, {"run.dir": str(tmp_path / "plain")}), show_progress=False)
    assert_same_run(tmp_path / "trial", tmp_path / "plain")
    lines = {line["step"]: line for line in read_metrics(str(tmp_path / "trial/metrics.jsonl"))}
    assert [e.step for e in evaluations] == [5, 10]
    for evaluation, loss_step in zip(evaluations, (4, 10), strict=True):  # as logged last
        assert evaluation.values == {
            METRIC.name: lines[evaluation.step][METRIC.name],
            LOSS.name: lines[loss_step][LOSS.name],
        }


def test_a_stop_comes_at_the_evaluation_itself_and_leaves_a_checkpoint(
    tiny_data: str, tmp_path: Path
) -> None:
    config = config_for(tiny_data, tmp_path / "trial")
    training = Training(config, [METRIC])
    assert isinstance(training.next(), Evaluation)
    training.received = STOP
    end = training.next()
    assert isinstance(end, End) and end.outcome is not None
    assert (end.outcome.step, end.outcome.signal) == (5, STOP)
    assert committed_steps(str(tmp_path / "trial")) == [4, 5]
    assert (tmp_path / "trial/generator").exists()

    # The run that is taken up again ends as if it had never stopped.
    evaluations, end = to_the_end(Training(config, [METRIC, LOSS]))
    assert [e.step for e in evaluations] == [10] and end.error is None
    train_locally(with_values(config, {"run.dir": str(tmp_path / "plain")}), show_progress=False)
    assert_same_run(tmp_path / "trial", tmp_path / "plain")


@pytest.mark.parametrize("halted", [True, False])
def test_a_process_that_takes_another_trial_ends_the_one_before(
    halted: bool, tiny_data: str, tmp_path: Path
) -> None:
    training = Training(config_for(tiny_data, tmp_path / "trial"), [METRIC])
    if halted:
        training.next()
    training.end()
    assert committed_steps(str(tmp_path / "trial"))
    assert not training._thread.is_alive()


@pytest.mark.parametrize("more", [(), ("train.max_steps=3",)])
def test_a_metric_that_is_never_logged_is_said(
    more: tuple[str, ...], tiny_data: str, tmp_path: Path
) -> None:
    config = config_for(tiny_data, tmp_path / "trial", *more)
    _, end = to_the_end(Training(config, [MetricSpec(name="loss/all")]))
    assert isinstance(end.error, UnmeasuredError)
    assert "--metric loss/all: no trial reports it; logged are: " in str(end.error)
    assert "loss/generator" in str(end.error)


def test_a_start_shortly_before_the_end_knows_what_was_logged_before(
    tiny_data: str, tmp_path: Path
) -> None:
    config = config_for(tiny_data, tmp_path / "trial")
    training = Training(config, [METRIC])
    training.next(), training.next()  # step 10
    training.received = STOP
    training.next()
    evaluations, end = to_the_end(Training(config, [METRIC]))
    assert evaluations == [] and end.error is None


def test_errors_of_the_training_come_out(tiny_data: str, tmp_path: Path) -> None:
    config = config_for(tiny_data, tmp_path / "trial", "optim.discriminator.kind=sgd",
                        "optim.discriminator.lr=1e12")  # fmt: skip
    _, end = to_the_end(Training(config, [METRIC]))
    assert isinstance(end.error, DivergedError)


def test_a_copy_goes_on_from_its_parent_s_state_with_its_own_values(
    tiny_data: str, tmp_path: Path
) -> None:
    parent = config_for(tiny_data, tmp_path / "parent")
    child = config_for(tiny_data, tmp_path / "child", "optim.generator.lr=1e-3")
    for config in (parent, child):
        train_locally(config, show_progress=False)
    mark_diverged(child.run.dir, 3, "for the test")  # copies revive
    changed = with_values(child, {"optim.generator.lr": 5e-4})
    copy_state(parent.run.dir, 8, changed)
    saved = saved_config(child.run.dir)
    assert saved is not None and saved.optim.generator.lr == 5e-4
    assert saved.train.schedule_steps == 12
    assert committed_steps(child.run.dir) == [8]
    file = weights_of(checkpoint_folder(parent.run.dir, 8)).name
    there = storage.read_bytes(storage.join(checkpoint_folder(parent.run.dir, 8), file))
    assert storage.read_bytes(storage.join(checkpoint_folder(child.run.dir, 8), file)) == there
    _, end = to_the_end(Training(changed, [METRIC]))
    assert end.outcome is not None and end.outcome.step == 12

    copy_state(parent.run.dir, 8, changed)  # done already: what came after stays
    assert 12 in committed_steps(child.run.dir)
    with pytest.raises(DistganError, match="step_00000007 is gone"):
        copy_state(parent.run.dir, 7, changed)
