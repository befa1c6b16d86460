"""Runs of two workers on Ray: the same training as in one process, whatever befalls the workers.

Each test is a whole run by the command line on a real local cluster.
"""

import functools
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from distgan import storage
from distgan.checkpoint import (
    checkpoint_folder,
    committed_steps,
    read_checkpoint,
)
from distgan.metrics.writer import read_metrics
from tests.cluster_runs import (
    SHOWN,
    CalmJob,
    arguments,
    assert_same_run,
    logged,
    run_program,
    tensors_of,
    train,
    train_with_faults,
    wait_until,
)
from tests.damage import flip_bit
from tests.object_servers import BUCKET, CREDENTIALS, KEY, OPTIONS, SECRET, rclone_server
from tests.processes import running
from tests.ray_heads import ray_head, ray_node
from tests.tiny import TINY, launch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def calm(calm_job: CalmJob) -> Path:
    """A run that nothing disturbed."""
    return calm_job.run


def test_two_workers_train_as_one_process_does(calm: Path, tiny_data: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    done = launch(*arguments(tiny_data, local, *SHOWN))  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = tensors_of(calm), tensors_of(local)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=3e-5, msg=name)
    for line, local_line in zip(logged(calm), logged(local), strict=True):
        assert line.keys() == local_line.keys()
        for tag, value in line.items():
            loose = 0.02 if tag.startswith("quality/") else 1e-3
            assert value == pytest.approx(local_line[tag], rel=loose, abs=1e-4), (line, tag)
    for file in ("config.yaml", "generator/model.safetensors", "samples/step_00000006.png"):
        assert (calm / file).exists()


def test_a_run_moves_between_local_mode_and_the_cluster(
    head: dict[str, str], calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    """Another number of workers and other ZeRO stages on resume, and back to one process."""
    run = tmp_path / "run"
    more = SHOWN
    assert launch(*arguments(tiny_data, run, "train.max_steps=4", "train.schedule_steps=12",
                             *more)).returncode == 0  # fmt: skip
    train(head, tiny_data, run, "train.max_steps=8", "cluster.generator.zero_stage=3",
          "cluster.discriminator.zero_stage=2", *more)  # fmt: skip
    done = launch(*arguments(tiny_data, run, "train.max_steps=12", *more))
    assert done.returncode == 0, done.stderr
    ours, theirs = tensors_of(run), tensors_of(calm)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=3e-5, msg=name)


def test_data_and_run_may_lie_on_object_storage(
    head: dict[str, str], calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    """With a cluster of its own, whose workers take their credentials from the environment."""
    root = tmp_path / "server"
    shutil.copytree(tiny_data, root / BUCKET / "data")
    own = {name: value for name, value in head.items() if not name.startswith("RAY_")}
    with rclone_server(root) as port:
        command = arguments(
            f"s3://{BUCKET}/data", tmp_path, *SHOWN, *OPTIONS, "cluster.num_workers=2",
            f"run.dir=s3://{BUCKET}/run", f"storage.endpoint_url=http://127.0.0.1:{port}",
        )  # fmt: skip
        run_program(["launch.py", *command], own | CREDENTIALS)
    assert_same_run(calm, root / BUCKET / "run")
    told = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert SECRET.encode() not in told and KEY.encode() not in told


def test_the_doctor_holds_the_engines_against_plain_pytorch(tmp_path: Path) -> None:
    done = launch(
        "doctor", *TINY, f"run.dir={tmp_path}", "cluster.num_workers=2",
        "cluster.generator.zero_stage=3", "cluster.discriminator.zero_stage=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "equal to plain PyTorch: 3 steps on 2 workers (cpu), generator at ZeRO-3" in done.stdout
    assert "weights differ by" in done.stdout and "all is well" in done.stdout


def test_a_killed_and_a_hanging_worker_leave_no_trace(
    head: dict[str, str], calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    """Rank 1 is killed in G's step, and later stopped in D's: then its state is told, and where
    rank 0 waits for it. A new checkpoint lies between, so that the faults are not in a row."""
    faults = [
        {"rank": 1, "step": 6, "place": "generator", "kind": "SIGKILL"},
        {"rank": 1, "step": 11, "place": "discriminator", "kind": "SIGSTOP"},
    ]
    run = tmp_path / "run"
    done = train_with_faults(head, tiny_data, run, faults, "cluster.hang_seconds=10", *SHOWN)
    told = done.stdout + done.stderr
    first, _, second = told.partition("the workers failed (1 of 3 times in a row)")
    assert "hanging" not in first and "going on from step 4" in second
    assert re.search(r"hanging: rank 1\n", second)
    assert re.search(r"rank 1 \(pid \d+ on \S+\).*process state T \(stopped by a signal\)", second)
    assert re.search(r"rank 0 \(pid \d+ on \S+\).*process state [RS]", second)
    assert "in all_reduce" in second or "in all_gather" in second
    assert "the workers failed (1 of 3 times in a row)" in second
    assert "going on from step 8" in second
    assert_same_run(calm, run)


def test_what_stands_between_command_and_workers_may_be_killed_or_stopped(
    head: dict[str, str], calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    """The board is killed in one attempt and Ray's controller stopped in the next: then the workers
    train on, and the command ends without it."""
    faults = [
        {"rank": 0, "step": 6, "place": "generator", "kind": "board killed"},
        {"rank": 0, "step": 11, "place": "generator", "kind": "controller stopped"},
    ]
    run = tmp_path / "run"
    done = train_with_faults(head, tiny_data, run, faults, "cluster.hang_seconds=10", *SHOWN)
    first, _, second = (done.stdout + done.stderr).partition("going on from step 4")
    assert "between the command and its workers has ended" in first
    assert "the workers failed (1 of 3 times in a row)" in first
    assert "TrainController did not end" in second and "the workers failed" not in second
    assert_same_run(calm, run)


def test_faults_without_progress_come_to_an_end(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    fault = {"rank": 0, "step": 2, "place": "data", "kind": "exception", "always": True}
    done = train_with_faults(
        head, tiny_data, tmp_path / "run", [fault], "cluster.max_failures=1", code=1
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "failed 2 times in a row" in last and "cluster.max_failures=1" in last
    assert "a fault that a test asked for" in last


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("cluster.num_workers=3",), ("cluster.num_workers=3", "take one of [1, 2, 4]")),
        (("cluster.num_workers=4",), ("cluster.num_workers=4", "the cluster has 2")),
        (("data.resolution=32",), ("data.resolution=32", "16 pixels")),
    ],
)
def test_bad_input_ends_with_2_and_one_message(
    more: tuple[str, ...], words: tuple[str, ...], head: dict[str, str], tiny_data: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    done = train(head, tiny_data, tmp_path / "run", *more, code=2)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("launch.py train: ") and all(word in last for word in words)
    assert "Traceback" not in done.stderr
    assert not committed_steps(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1 can't be reached"),
        ("ray://127.0.0.1:10001", "use `launch.py submit -- ...`"),
    ],
)
def test_a_cluster_that_can_not_be_joined_is_said(
    address: str, words: str, tiny_data: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "RAY_ADDRESS": address}
    command = arguments(tiny_data, tmp_path / "run", "cluster.num_workers=2")
    done = run_program(["launch.py", *command], environment, code=2)
    assert words in done.stderr.splitlines()[-1]


def test_a_cluster_that_asks_for_its_token_says_so(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    without = head | {"RAY_AUTH_MODE": "disabled"}
    done = train(without, tiny_data, tmp_path / "run", code=2)
    assert "asks for its token: set RAY_AUTH_MODE=token" in done.stderr.splitlines()[-1]


def test_damage_that_rank_0_alone_finds_is_one_message(
    head: dict[str, str], calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(calm, run)
    for file in run.glob("checkpoints/*/rank-00001.safetensors"):
        flip_bit(file, -5)
    done = train(head, tiny_data, run, "train.max_steps=20", code=2)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("launch.py train: rank 0 on ") and "every checkpoint in" in last
    assert "start again in a new run folder" in last
    told = done.stdout + done.stderr
    assert "Traceback" not in told and "RayTrainWorker" not in told
    assert told.count("every checkpoint in") == 1


def until_step(step: int, run: Path) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and f'{{"step": {step},' in path.read_text()


LONG = ("train.max_steps=240", "checkpoint.interval_steps=50", "checkpoint.keep=9")


@pytest.fixture(scope="module")
def long_calm(
    head: dict[str, str], tiny_data: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("long_calm") / "run"
    train(head, tiny_data, run, *LONG)
    return run


@pytest.mark.soak  # minutes
def test_the_command_may_be_killed_and_stopped_and_run_again(
    head: dict[str, str], long_calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    """With a cluster of its own: after SIGKILL the newest checkpoint counts, and SIGTERM leaves
    one of the step that was reached."""
    run = tmp_path / "run"
    own = {name: value for name, value in head.items() if not name.startswith("RAY_")}
    command = ["launch.py", *arguments(tiny_data, run, "cluster.num_workers=2", *LONG)]

    def end_at(step: int, number: signal.Signals) -> int:
        """Its exit code."""
        at = functools.partial(until_step, step, run)
        with running([sys.executable, *command], own, at, timeout_s=120) as process:
            process.send_signal(number)
            return process.wait(60)

    assert end_at(60, signal.SIGKILL) == -signal.SIGKILL
    assert committed_steps(str(run)) == [50]
    # The killed run may have logged steps up to 99, which do not count.
    assert end_at(110, signal.SIGTERM) == 128 + signal.SIGTERM
    assert committed_steps(str(run))[-1] >= 110
    run_program(command, own)
    assert_same_run(long_calm, run)


@pytest.mark.soak  # minutes
def test_a_run_shrinks_when_a_machine_is_lost_and_grows_when_one_comes(
    tiny_data: str, long_calm: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ("cluster.num_workers=2", "cluster.min_workers=1", "cluster.resize_seconds=1",
            "train.max_steps=600", "train.schedule_steps=240", "checkpoint.interval_steps=20",
            "checkpoint.keep=99")  # fmt: skip
    command = ["launch.py", *arguments(tiny_data, run, *more)]

    def ranks_of(step: int) -> int:
        folder = checkpoint_folder(str(run), step)
        return sum(name.endswith(".safetensors") for name in storage.list_names(folder))

    def reached(ranks: int, after: int) -> bool:
        return any(s > after and ranks_of(s) == ranks for s in committed_steps(str(run)))

    with (
        ray_head(num_cpus=1) as head,
        ray_node(head) as node,
        running([sys.executable, *command], head, lambda: reached(2, 0), timeout_s=120) as process,
    ):
        os.killpg(node.pid, signal.SIGKILL)
        lost = committed_steps(str(run))[-1]
        wait_until(lambda: reached(1, lost), 120, process)
        with ray_node(head):
            alone = committed_steps(str(run))[-1]
            wait_until(lambda: reached(2, alone), 120, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
    steps = [line["step"] for line in read_metrics(str(run / "metrics.jsonl"))]
    assert steps == list(range(1, len(steps) + 1))
    at_100 = (read_checkpoint(checkpoint_folder(str(r), 100), 100) for r in (run, long_calm))
    ours, theirs = (checkpoint.tensors for checkpoint in at_100)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=3e-3, msg=name)
