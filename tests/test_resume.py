"""A run that was killed and started again equals one that never stopped, bit by bit."""

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from distgan import storage
from distgan.checkpoint import checkpoint_folder, committed_steps, read_checkpoint
from distgan.config_loading import load_config
from distgan.local import train_locally
from tests.checkpoints import state_hash, weights_of
from tests.damage import flip_bit
from tests.processes import running
from tests.tiny import REPOSITORY, TINY, launch, one_thread

STEPS = 24  # 8 clips a step, 40 clips an epoch: epochs end within steps 5, 10, 15, 20
TIMED = ("time/", "throughput/", "memory/")


def train_arguments(run_dir: Path, data: str, *more: str) -> list[str]:
    return [
        "train",
        *TINY,
        f"train.max_steps={STEPS}",
        "log.interval_steps=3",  # straddles checkpoints, which come every 4 steps
        "log.proxy_interval_steps=8",
        "log.proxy_clips=16",
        "log.sample_interval_steps=10",
        f"data.shards={data}",
        f"run.dir={run_dir}",
        *more,
    ]


def logged(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in lines]


def training(
    run_dir: Path, data: str, *more: str, until: str = '{"step": '
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Training in the background, from when metrics.jsonl holds `until`: by default, any step."""
    metrics = run_dir / "metrics.jsonl"

    def is_logged() -> bool:
        return metrics.exists() and until in metrics.read_text()

    command = [str(REPOSITORY / "launch.py"), *train_arguments(run_dir, data, *more)]
    return running([sys.executable, *command], one_thread(), is_logged)


def start_and_kill_after(run_dir: Path, data: str, step: int, *more: str) -> None:
    """Starts training, waits until `step` is logged, and sends SIGKILL."""
    until = f'{{"step": {step},'
    with training(run_dir, data, "log.interval_steps=1", *more, until=until) as process:
        process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def uninterrupted(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = launch(*train_arguments(run_dir, tiny_data))
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.parametrize("kill_step", [2, 9, 15])
def test_killed_run_equals_uninterrupted_one(
    uninterrupted: Path, tiny_data: str, tmp_path: Path, kill_step: int
) -> None:
    """Before the first checkpoint, within an epoch, and just after an epoch's end."""
    run_dir = tmp_path / "run"
    start_and_kill_after(run_dir, tiny_data, kill_step)
    assert (run_dir / "generator").exists() is False
    if kill_step > 4:
        assert committed_steps(str(run_dir)), "nothing to resume from: the test would prove nothing"
    done = launch(*train_arguments(run_dir, tiny_data))
    assert done.returncode == 0, done.stderr
    assert state_hash(run_dir, STEPS) == state_hash(uninterrupted, STEPS)
    last_half = [line for line in logged(uninterrupted) if line["step"] > kill_step]
    assert [line for line in logged(run_dir) if line["step"] > kill_step][1:] == last_half[1:]


def test_computing_time_counts_on_over_a_resume(
    uninterrupted: Path, tiny_data: str, tmp_path: Path
) -> None:
    """The resumed run's clock starts at what its checkpoint had, not at 0."""

    def totals(run_dir: Path) -> list[float]:
        lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        return [line["time/compute_total_s"] for line in lines if "time/compute_total_s" in line]

    run_dir = tmp_path / "run"
    start_and_kill_after(run_dir, tiny_data, 15)
    step = committed_steps(str(run_dir))[-1]
    before = read_checkpoint(checkpoint_folder(str(run_dir), step), step).state["compute_seconds"]
    assert before > 0
    assert launch(*train_arguments(run_dir, tiny_data)).returncode == 0
    for times in (totals(run_dir), totals(uninterrupted)):
        assert times == sorted(times) and times[0] > 0
    assert totals(run_dir)[-1] > before
    later = [t for t in totals(run_dir) if t >= before]
    assert len(later) >= (STEPS - step) // 3


def test_resume_with_loader_workers(uninterrupted: Path, tiny_data: str, tmp_path: Path) -> None:
    """Workers that read ahead leave no trace in the position."""
    run_dir = tmp_path / "run"
    start_and_kill_after(run_dir, tiny_data, 9, "data.num_workers=2")
    done = launch(*train_arguments(run_dir, tiny_data, "data.num_workers=1"))
    assert done.returncode == 0, done.stderr
    assert state_hash(run_dir, STEPS) == state_hash(uninterrupted, STEPS)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_with_a_checkpoint(
    uninterrupted: Path, tiny_data: str, tmp_path: Path, number: int, code: int
) -> None:
    run_dir = tmp_path / "run"
    with training(run_dir, tiny_data, "checkpoint.interval_steps=1000") as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    (stopped_at,) = committed_steps(str(run_dir))
    assert 0 < stopped_at < STEPS
    done = launch(*train_arguments(run_dir, tiny_data, "checkpoint.interval_steps=1000"))
    assert done.returncode == 0, done.stderr
    assert state_hash(run_dir, STEPS) == state_hash(uninterrupted, STEPS)
    assert logged(run_dir) == logged(uninterrupted)


class Asked:
    """To stop, before the first step."""

    received = int(signal.SIGTERM)


def test_a_run_may_be_stopped_before_its_first_step_again_and_again(
    uninterrupted: Path, tiny_data: str, tmp_path: Path
) -> None:
    arguments = train_arguments(tmp_path, tiny_data)
    for _ in range(2):
        outcome = train_locally(
            load_config(overrides=arguments[1:]), requests=Asked(), show_progress=False
        )
        assert (outcome.step, outcome.signal) == (0, signal.SIGTERM)
        assert committed_steps(str(tmp_path)) == [0]
    done = launch(*arguments)
    assert done.returncode == 0, done.stderr
    assert state_hash(tmp_path, STEPS) == state_hash(uninterrupted, STEPS)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_to_the_whole_process_group_ends_cleanly(
    tiny_data: str, tmp_path: Path, number: int, code: int
) -> None:
    """What Ctrl-C in a terminal does: the loader's workers get the signal too."""
    run_dir = tmp_path / "run"
    endless = ("data.num_workers=1", "train.max_steps=100000")
    with training(run_dir, tiny_data, *endless) as process:
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert committed_steps(str(run_dir))


def test_damaged_checkpoint_falls_back_and_says_so(
    uninterrupted: Path, tiny_data: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = train_arguments(run_dir, tiny_data)
    assert launch(*arguments, "train.max_steps=16").returncode == 0
    weights = weights_of(checkpoint_folder(str(run_dir), 16))
    flip_bit(weights, weights.stat().st_size // 2)
    # The schedule's length was fixed by the first start, so the end is that of a 16-step run.
    done = launch(*arguments, "train.max_steps=20")
    assert done.returncode == 0, done.stderr
    assert "sha256" in done.stderr + done.stdout
    assert "step 12" in done.stderr + done.stdout
    assert committed_steps(str(run_dir))[-1] == 20
    assert storage.exists(str(run_dir / "checkpoints" / "damaged_00000016"))


def test_the_last_step_has_a_line_and_a_longer_run_goes_on_as_if_planned(
    tiny_data: str, tmp_path: Path
) -> None:
    """Five steps, and three more, beside eight at once; a line is due every third step, and no stop
    rule looks at another."""
    schedule = ("train.schedule_steps=8", "checkpoint.interval_steps=5",
                "stop.metric=loss/generator", "stop.target=-1e9")  # fmt: skip
    for run, lengths in (("longer", (5, 8)), ("planned", (8,))):
        for steps in lengths:
            more = (*schedule, f"train.max_steps={steps}")
            done = launch(*train_arguments(tmp_path / run, tiny_data, *more))
            assert done.returncode == 0, done.stderr
    longer, planned = logged(tmp_path / "longer"), logged(tmp_path / "planned")
    assert [line["step"] for line in planned] == [3, 6, 8]
    assert [line["step"] for line in longer] == [3, 5, 6, 8]
    assert planned == [line for line in longer if line["step"] != 5]
    for step in (5, 8):
        assert state_hash(tmp_path / "longer", step) == state_hash(tmp_path / "planned", step)
