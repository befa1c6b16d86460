"""Whole sweeps by the command line, on a real Ray cluster: their life, their faults, their end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from distgan.checkpoint import committed_steps
from distgan.config_loading import with_values
from distgan.local import train_locally
from distgan.metrics.writer import read_metrics
from distgan.run_folder import saved_config
from tests.cluster_runs import assert_same_run, run_program, wait_until
from tests.tiny import REPOSITORY, TINY, launch
from tune.copying import copy_state
from tune.population import read_generations
from tune.records import TrialRecord, read_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

METRIC = "quality/proxy_frechet_ema"
STEPS, LONG = 60, 180
KEYS = (*TINY, f"train.max_steps={STEPS}", "log.proxy_interval_steps=6", "log.proxy_clips=16")


def command(data: str, run: Path, space: dict[str, object], *more: str, options: str) -> list[str]:
    file = run.with_name(f"{run.name}-space.yaml")
    file.write_text(json.dumps(space))  # which is YAML, too
    keys = [*KEYS, f"data.shards={data}", f"run.dir={run}", *more]
    return ["launch.py", "tune", *keys, "--space", str(file), *options.split()]


def records(run: Path) -> dict[str, TrialRecord]:
    return {record.trial_id: record for record in read_sweep(str(run))[1]}


def until_step(
    arguments: list[str], head: dict[str, str], run: Path, trial: str, step: int,
    act: Callable[["subprocess.Popen[str]"], None],
) -> tuple[int, str]:  # fmt: skip
    """Starts a sweep, acts when a trial is that far, and returns its exit code and output."""

    def is_there() -> bool:
        known = records(run) if (run / "sweep.yaml").exists() else {}
        return trial in known and known[trial].step >= step

    with subprocess.Popen(
        [sys.executable, *arguments], cwd=REPOSITORY, env=head, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as driver:  # fmt: skip
        try:
            wait_until(is_there, 200, driver)
            act(driver)
            output, _ = driver.communicate(timeout=250)
        finally:
            driver.kill()
    return driver.returncode, output


def kill_trial_process(trial: Path) -> None:
    """The one that holds the lock of the trial's folder."""
    inode = (trial / ".lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            os.kill(int(fields[4]), signal.SIGKILL)
            return
    raise AssertionError("nobody trains there")


def plain(run: Path, trial: str, folder: Path) -> Path:
    """The same training by `launch.py train`'s own code."""
    config = saved_config(str(run / "trials" / trial))
    assert config is not None
    with one_thread():
        train_locally(with_values(config, {"run.dir": str(folder)}), show_progress=False)
    return folder


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As a trial of one CPU has it: with more threads, sums come in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.soak  # minutes each
def test_whatever_befalls_a_sweep_it_ends_as_if_undisturbed(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    """Ctrl-C, a killed driver and a killed trial; of its trials one diverges and one always fails.

    Each trial ends with the numbers of a plain training run, and the best with its every bit.
    """
    run = tmp_path / "run"
    space: dict[str, object] = {
        "model.generator.latent_dim": {"grid": [8, 10**12]},  # more than any memory
        "optim.discriminator.lr": {"grid": [1e-3, 1e12]},  # far too high: it diverges
    }
    options = "--algorithm grid --max-concurrent 1 --keep 1 --max-failures 1"
    # Long enough that signals and kills, which take a second to arrive, come in the middle.
    more = ("optim.discriminator.kind=sgd", f"train.max_steps={LONG}")
    arguments = command(tiny_data, run, space, *more, options=options)

    code, output = until_step(
        arguments, head, run, "base-seed0", 6, lambda driver: driver.send_signal(signal.SIGINT)
    )
    assert code == 130, output
    assert "the same command goes on" in output
    assert records(run)["base-seed0"].status == "running"
    assert committed_steps(str(run / "trials/base-seed0"))

    code, output = until_step(arguments, head, run, "0000-seed0", 6, lambda driver: driver.kill())
    assert code == -signal.SIGKILL
    assert records(run)["base-seed0"].status == "finished"
    stamp = (run / "trials/base-seed0/metrics.jsonl").stat().st_mtime_ns

    code, output = until_step(
        arguments, head, run, "0000-seed0", 30,
        lambda driver: kill_trial_process(run / "trials/0000-seed0"),
    )  # fmt: skip
    assert code == 0, output
    assert "0000-seed0: its process died" in output
    assert "Traceback" not in output and "WARNING" not in output, output
    assert (run / "trials/base-seed0/metrics.jsonl").stat().st_mtime_ns == stamp

    ended = records(run)
    statuses = {name: record.status for name, record in ended.items()}
    assert statuses == {
        "base-seed0": "finished", "0000-seed0": "finished", "0001-seed0": "diverged",
        "0002-seed0": "failed", "0003-seed0": "failed",
    }  # fmt: skip
    assert "stop.nonfinite_steps" in ended["0001-seed0"].reason
    assert "memory" in ended["0002-seed0"].reason
    for trial in ("base-seed0", "0000-seed0"):
        alike = plain(run, trial, tmp_path / trial)
        last = read_metrics(str(alike / "metrics.jsonl"))[-1]
        assert ended[trial].step == last["step"] == LONG
        assert ended[trial].values == {METRIC: last[METRIC]}
    kept = [name for name in ended if (run / "trials" / name / "checkpoints").exists()]
    good = ("base-seed0", "0000-seed0")
    assert kept == [min(good, key=lambda name: ended[name].values[METRIC])]
    assert_same_run(run / "trials" / kept[0], tmp_path / kept[0])
    assert (run / "best.yaml").exists()

    done = run_program(arguments, head)  # nothing is left to do
    assert (run / "trials/base-seed0/metrics.jsonl").stat().st_mtime_ns == stamp
    assert "5 of 5 trials" in done.stdout


@pytest.mark.soak  # minutes each
def test_a_population_copies_whole_states(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    space: dict[str, object] = {"optim.generator.lr": {"loguniform": [1e-5, 1e-2]}}
    options = "--algorithm pbt --num-trials 4 --perturbation-steps 30 --keep 9"
    run_program(command(tiny_data, run, space, options=options), head)
    ended = records(run)
    assert {record.status for record in ended.values()} == {"finished"}
    (generation,) = read_generations(str(run))
    ((name, change),) = generation.changes.items()
    assert ended[name].parent == change.parent
    assert ended[name].overrides == change.overrides
    # The copy went on exactly as training from the parent's checkpoint does.
    config = saved_config(str(run / "trials" / name))
    assert config is not None
    again = with_values(config, {"run.dir": str(tmp_path / "again")})
    copy_state(str(run / "trials" / change.parent), change.parent_step, again)
    with one_thread():
        train_locally(again, show_progress=False)
    last = read_metrics(str(tmp_path / "again" / "metrics.jsonl"))[-1]
    assert ended[name].values == {METRIC: last[METRIC]}


@pytest.mark.soak  # minutes each
def test_trials_of_several_workers_are_stopped_early(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    """Each trial is a Ray Train run with ZeRO, that needs all CPUs of the cluster."""
    run = tmp_path / "run"
    space: dict[str, object] = {"optim.generator.lr": {"grid": [1e-12]}}
    options = f"--algorithm asha --num-trials 1 --grace-steps 6 --metric {METRIC}:max"
    space = {"optim.generator.lr": {"choice": [1e-3]}}
    more = ("cluster.num_workers=2", "optim.generator.lr=1e-9", "train.max_steps=18")
    done = run_program(command(tiny_data, run, space, *more, options=options), head)
    ended = records(run)
    assert ended["base-seed0"].status == "finished"
    assert ended["0000-seed0"].status == "stopped", done.stdout
    assert ended["0000-seed0"].step == 6
    assert committed_steps(str(run / "trials/0000-seed0")) == [4, 6]


def test_what_can_not_be_searched_is_said_at_once(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    space: dict[str, object] = {"loss.gamma": {"choice": [1, 2]}}
    big = command(tiny_data, tmp_path / "big", space, "cluster.num_workers=8", options="")
    done = run_program(big, head, code=2)
    assert "each trial needs 8 x 1 CPUs, and the cluster has at most 2 x 1 CPUs" in done.stderr
    unknown = command(tiny_data, tmp_path / "run", space, options="--metric loss/total")
    done = run_program(unknown, head, code=2)
    assert "--metric loss/total: no trial reports it; logged are: " in done.stderr
    assert "loss/generator" in done.stderr and METRIC in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--space", "optimizers"), "did you mean 'optimizer'"),
        (("--algorithm", "grid"), "a grid can't hold all of loguniform"),
        (("--repeats", "0"), "--repeats 0: Input should be greater than or equal to 1"),
        (("--metric", "a:least"), "write NAME, NAME:min or NAME:max"),
        (("train.max_steps=100",), "never within train.max_steps=100"),
    ],
)
def test_bad_input_ends_with_one_message(options: tuple[str, ...], words: str) -> None:
    given = ("--space", "optimizer") if "--space" not in options else ()
    done = launch("tune", *options, *given)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
