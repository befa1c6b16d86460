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
    without_cluster,
)
from tests.damage import flip_bit
from tests.faulty_worker import GROUP, NAN
from tests.object_servers import BUCKET, CREDENTIALS, KEY, OPTIONS, SECRET, rclone_server
from tests.processes import Descendants, running
from tests.ray_heads import ray_head, ray_node
from tests.tiny import TINY, launch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def calm(calm_job: CalmJob) -> Path:
    """A run that nothing disturbed."""
    return calm_job.run


def assert_equal_but_for_rounding(one: Path, other: Path) -> None:
    """Last checkpoint, optimizers included, and every logged number; sums are in another order."""
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        atol = 3e-5
        if ".optimizer/" in name:  # squares of gradients are small; found: up to 1.4e-4
            atol = 2e-3 * theirs[name].abs().max().item()
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=atol, msg=name)
    for line, other_line in zip(logged(one), logged(other), strict=True):
        assert line.keys() == other_line.keys()
        for tag, value in line.items():
            loose = 0.02 if tag.startswith("quality/") else 1e-3
            assert value == pytest.approx(other_line[tag], rel=loose, abs=1e-4), (line, tag)


def test_two_workers_train_as_one_process_does(calm: Path, tiny_data: str, tmp_path: Path) -> None:
    """And rank 0 alone writes what people look at."""
    local = tmp_path / "local"
    done = launch(*arguments(tiny_data, local, *SHOWN))
    assert done.returncode == 0, done.stderr
    assert_equal_but_for_rounding(calm, local)
    for file in ("config.yaml", "generator/model.safetensors", "samples/step_00000006.png"):
        assert (calm / file).exists()
    assert len(list((calm / "tensorboard").iterdir())) == 1


def test_a_run_moves_between_local_mode_and_the_cluster(
    head: dict[str, str], calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    """Another number of workers and other ZeRO stages on resume, and back to one process; what
    rank 0 shows and measures in between is the average that all ranks hold parts of."""
    run = tmp_path / "run"
    first = arguments(tiny_data, run, "train.max_steps=4", "train.schedule_steps=12", *SHOWN)
    assert launch(*first).returncode == 0
    done = train(head, tiny_data, run, "train.max_steps=8", "cluster.generator.zero_stage=3",
                 "cluster.discriminator.zero_stage=2", "cluster.parity_check=true",
                 *SHOWN)  # fmt: skip
    parity = "equal to plain PyTorch: 3 steps in float32 on 2 workers (cpu)"
    assert done.stdout.count(parity) == 1
    done = launch(*arguments(tiny_data, run, "train.max_steps=12", *SHOWN))
    assert done.returncode == 0, done.stderr
    assert_equal_but_for_rounding(run, calm)
    assert (run / "samples" / "step_00000006.png").exists()


def test_data_and_run_may_lie_on_object_storage(
    head: dict[str, str], calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    """With a cluster of its own, whose workers take their credentials from the environment.

    The command is killed in the middle, with a worker that stands still: all that it started ends,
    and run again it goes on from the newest checkpoint."""
    root = tmp_path / "server"
    run = root / BUCKET / "run"
    shutil.copytree(tiny_data, root / BUCKET / "data")
    faults = [
        {"rank": 0, "step": 11, "place": "discriminator", "kind": "driver killed"},
        {"rank": 0, "step": 11, "place": "generator", "kind": "hang"},
    ]
    agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # look for their server for 60 s
    with rclone_server(root) as port, Descendants() as started:
        own = without_cluster(head) | CREDENTIALS | started.mark
        more = (*SHOWN, *OPTIONS, f"run.dir=s3://{BUCKET}/run",
                f"storage.endpoint_url=http://127.0.0.1:{port}")  # fmt: skip

        def train_once(code: int) -> None:
            data = f"s3://{BUCKET}/data"
            train_with_faults(own, data, tmp_path / "run", faults, *more, code=code)

        train_once(-signal.SIGKILL)
        started.all_end(within_s=10, but_for=agents)
        assert committed_steps(str(run))[-1:] in ([4], [8])
        train_once(0)
        started.all_end(within_s=90)
    assert_same_run(calm, run)
    told = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert SECRET.encode() not in told and KEY.encode() not in told


def test_the_doctor_holds_the_engines_against_plain_pytorch(tmp_path: Path) -> None:
    done = launch(
        "doctor", *TINY, f"run.dir={tmp_path}", "cluster.num_workers=2",
        "cluster.generator.zero_stage=3", "cluster.discriminator.zero_stage=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "equal to plain PyTorch: 3 steps in float32 on 2 workers (cpu)" in done.stdout
    assert "weights differ by" in done.stdout and "all is well" in done.stdout


def test_a_killed_and_a_hanging_worker_leave_no_trace(
    head: dict[str, str], calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    """One after the other: rank 0 ends while the workers' group is made (which Ray's own controller
    would leave with its places taken), rank 1 is killed in G's step, can't write its part of a
    checkpoint, and is stopped in D's step: then its state is told, and where rank 0 waits for it.
    With a new checkpoint between them, faults are not in a row."""
    faults = [
        {"rank": 0, "step": -1, "place": GROUP, "kind": "SIGKILL"},
        {"rank": 1, "step": 6, "place": "generator", "kind": "SIGKILL"},
        {"rank": 1, "step": 8, "place": "save", "kind": "exception"},
        {"rank": 1, "step": 11, "place": "discriminator", "kind": "SIGSTOP"},
    ]
    run = tmp_path / "run"
    done = train_with_faults(
        head, tiny_data, run, faults, "cluster.hang_seconds=10", *SHOWN, timeout_s=400
    )
    told = done.stdout + done.stderr
    assert re.findall(r"the workers failed \((\d of \d) times in a row\)", told) == [
        "1 of 3", "1 of 3", "2 of 3", "1 of 3"
    ]  # fmt: skip
    assert re.findall(r"going on from step (\d+)", told) == ["0", "4", "4", "8"]
    assert told.count("hanging: ") == 1
    _, _, last = told.partition("hanging: rank 1\n")
    assert re.search(r"rank 1 \(pid \d+ on \S+\).*process state T \(stopped by a signal\)", last)
    assert re.search(r"rank 0 \(pid \d+ on \S+\).*process state [RS]", last)
    assert "in all_reduce" in last or "in all_gather" in last
    assert_same_run(calm, run)


def test_what_stands_between_command_and_workers_may_be_killed_or_stopped(
    head: dict[str, str], calm: Path, tiny_data: str, tmp_path: Path
) -> None:
    """The board is killed in one attempt and Ray's controller stopped in the next: then the workers
    train on, and the command ends without it.

    In the next, too, rank 1 alone has a loss that is not finite in two steps. Both ranks go back
    to the checkpoint before, which is no fault, and nothing of it is left."""
    faults = [
        {"rank": 0, "step": 6, "place": "generator", "kind": "board killed"},
        {"rank": 1, "step": 9, "place": "generator", "kind": NAN, "times": 2},
        {"rank": 0, "step": 11, "place": "generator", "kind": "controller stopped"},
    ]
    run = tmp_path / "run"
    more = ("cluster.hang_seconds=10", "stop.nonfinite_steps=2", *SHOWN)
    done = train_with_faults(head, tiny_data, run, faults, *more)
    first, _, second = (done.stdout + done.stderr).partition("going on from step 4")
    assert "between the command and its workers has ended" in first
    assert "the workers failed (1 of 3 times in a row)" in first
    assert "TrainController did not end" in second and "the workers failed" not in second
    assert "gradient norm of the generator is nan; the update is left out" in second
    assert second.count("going back to the newest checkpoint, once") == 1
    assert f"resuming {run} from step 8" in second
    assert_same_run(calm, run)


def test_faults_without_progress_come_to_an_end(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    fault = {"rank": 0, "step": 2, "place": "data", "kind": "exception", "times": 9}
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
        (
            ("loss.penalty_form=exact", "cluster.discriminator.zero_stage=3"),
            ("loss.penalty_form=exact", "cluster.discriminator.zero_stage=2"),
        ),
    ],
)
def test_bad_input_ends_with_2_and_one_message(
    more: tuple[str, ...], words: tuple[str, ...], head: dict[str, str], tiny_data: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    assert_refused(head, tiny_data, tmp_path / "run", more, words)


def test_bad_input_leaves_no_process(head: dict[str, str], tiny_data: str, tmp_path: Path) -> None:
    """It is found when the command's own cluster has started, which ends with the command."""
    with Descendants() as started:
        own = without_cluster(head) | started.mark
        words = ("data.resolution=32", "16 pixels")
        assert_refused(own, tiny_data, tmp_path / "run", ("data.resolution=32",), words)
        started.all_end(within_s=10)


def assert_refused(
    environment: dict[str, str], data: str, run: Path, more: tuple[str, ...],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    done = train(environment, data, run, *more, code=2)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("launch.py train: ") and all(word in last for word in words)
    assert "Traceback" not in done.stderr
    assert not committed_steps(str(run))


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


def test_a_cluster_of_another_version_is_said(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    """Workers with other packages are refused by tests/test_team.py's ranks."""
    program = (
        "import sys, ray; ray.__version__ = '2.59.0'\n"
        "from launch import main; sys.exit(main(sys.argv[1:]))"
    )
    command = arguments(tiny_data, tmp_path / "run", "cluster.num_workers=2")
    done = run_program(["-c", program, *command], head, code=2)
    line = done.stderr.splitlines()[-1]
    assert "has other versions" in line and "2.59.0" in line


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
    for file in run.glob("checkpoints/*/rank-00001-*.safetensors"):
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


# Of the L2 norms of tensors by kind, after 100 steps of which some were taken by one worker.
# Measured: 5.4e-6, 3.4e-4, 7.8e-5 and 0. Without momentum, first moments are the last gradient.
SIMILAR = {"weights": 3e-5, "exp_avg": 2e-3, "exp_avg_sq": 4e-4, "step": 0.0}
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
    own = without_cluster(head)
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
    differ = relative_differences(*(checkpoint.tensors for checkpoint in at_100))
    print(ranks_of(100), differ)
    for (network, kind), difference in differ.items():
        assert difference <= SIMILAR[kind], (network, kind, difference)


def relative_differences(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> dict[tuple[str, str], float]:
    """L2 norms of the differences, relative to those of `theirs`, by network and kind of tensor."""
    assert ours.keys() == theirs.keys()
    squares: dict[tuple[str, str], torch.Tensor] = {}
    for name, tensor in theirs.items():
        network, optimizer, _ = name.partition("/")[0].partition(".")
        key = (network, name.rpartition("/")[2] if optimizer else "weights")
        pair = torch.stack([ours[name] - tensor, tensor]).double().reshape(2, -1)
        squares[key] = squares.get(key, torch.zeros(2)) + pair.square().sum(1)
    return {key: (apart / whole).sqrt().item() for key, (apart, whole) in squares.items()}
