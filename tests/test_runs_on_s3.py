"""The commands with everything on s3:// equal those with everything on disk, bit by bit."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distgan import storage
from distgan.checkpoint import checkpoint_folder, committed_steps, read_checkpoint
from distgan.config import StorageConfig
from distgan.data.demo import render_demo_videos
from launch import main
from tests.checkpoints import weights_of
from tests.fault_proxy import FaultProxy, Request, always, writes_denied
from tests.object_servers import (
    BUCKET,
    CREDENTIALS,
    KEY,
    OPTIONS,
    SECRET,
    options_for,
    rclone_server,
    with_options,
)
from tests.tiny import REPOSITORY, TINY, one_thread

STEPS = 12
RUN = (
    *TINY,
    f"train.max_steps={STEPS}",
    "log.sample_interval_steps=6",
    "log.num_samples=2",
    "conditioning.task=prediction",
    "conditioning.context_frames=2",
)
TIMED = ("time/", "throughput/", "memory/")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that a server shows as a bucket."""
    root = tmp_path_factory.mktemp("bucket")
    with rclone_server(root) as port, with_options(options_for(port)):
        (root / "port").write_text(str(port))
        yield root / BUCKET


@pytest.fixture(scope="module")
def options(bucket: Path) -> tuple[str, ...]:
    port = (bucket.parent / "port").read_text()
    return (*OPTIONS, f"storage.endpoint_url=http://127.0.0.1:{port}", "storage.retry_seconds=20")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """launch.py as users run it, with credentials in its environment."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), *arguments],
        env={**one_thread(), **CREDENTIALS},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def succeeds(*arguments: str) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def here(*arguments: str, **environment: str | None) -> tuple[int, str, str]:
    """launch.py in this process, which is faster: its exit code, stdout and stderr."""
    out, errors = io.StringIO(), io.StringIO()
    with with_options(storage.options()), pytest.MonkeyPatch.context() as patch:
        storage.configure(StorageConfig())  # the environment may differ: connect anew
        for name, value in environment.items():
            if value is None:
                patch.delenv(name)
            else:
                patch.setenv(name, value)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main(arguments)
    return code, out.getvalue(), errors.getvalue()


def refused(*arguments: str, code: int = 2, **environment: str | None) -> str:
    """The one line that a refused command leaves on stderr; it holds no credentials."""
    found, out, errors = here(*arguments, **environment)
    return one_line(found, code, out, errors)


def one_line(found: int, code: int, out: str, errors: str) -> str:
    assert found == code, out + errors
    assert errors.count("\n") == 1, errors
    assert SECRET not in errors and KEY not in errors
    return errors


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos, data, run and made: prepare, train and generate on disk."""
    folder = tmp_path_factory.mktemp("local")
    render_demo_videos(str(folder / "videos"), num_videos=6, seed=0, size=32)
    prepare = ("prepare", "--input", f"{folder}/videos", "--output", f"{folder}/data", *RUN)
    assert here(*prepare)[0] == 0
    succeeds("train", *RUN, f"data.shards={folder}/data", f"run.dir={folder}/run")
    succeeds(*generate(f"{folder}"))
    return folder


def generate(base: str, videos: str = "") -> tuple[str, ...]:
    return ("generate", "--run", f"{base}/run", "--output", f"{base}/made", "--num", "2",
            "--input", videos or f"{base}/videos")  # fmt: skip


@pytest.fixture(scope="module")
def remote(local: Path, bucket: Path, options: tuple[str, ...]) -> str:
    """A URL with the same; training was killed in the middle and started again."""
    base = f"s3://{BUCKET}/all"
    for name, data in files_of(local / "videos").items():
        storage.write_bytes(f"{base}/videos/{name}", data)
    prepare = ("prepare", "--input", f"{base}/videos", "--output", f"{base}/data")
    succeeds(*prepare, *RUN, "prepare.num_processes=2", *options)
    arguments = ("train", *RUN, f"data.shards={base}/data", f"run.dir={base}/run", *options)
    kill_after_checkpoint(bucket / "all" / "run", *arguments, "data.num_workers=2")
    assert "resuming" in succeeds(*arguments)
    succeeds(*generate(base), *options)
    return base


def kill_after_checkpoint(run_dir: Path, *arguments: str) -> None:
    """SIGKILL between the checkpoints of steps 4 and 12."""
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "launch.py"), *arguments],
        env={**one_thread(), **CREDENTIALS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    try:
        while not (run_dir / "checkpoints" / "step_00000004" / "COMMITTED").exists():
            if process.poll() is not None:
                pytest.fail(f"training ended: {process.communicate()[1]}")
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (run_dir / "checkpoints" / f"step_{STEPS:08d}" / "COMMITTED").exists()


def test_prepare_gives_the_same_bytes(local: Path, bucket: Path, remote: str) -> None:
    assert files_of(local / "data") == files_of(bucket / "all" / "data")


def test_training_gives_the_same_bits(local: Path, remote: str) -> None:
    """Killed, with two loader workers, and resumed without, from s3:// to s3://."""
    mine, there = str(local / "run"), f"{remote}/run"
    assert committed_steps(there) == committed_steps(mine)
    for step in committed_steps(mine):
        ours = read_checkpoint(checkpoint_folder(mine, step), step)
        theirs = read_checkpoint(checkpoint_folder(there, step), step)
        assert ours.tensors.keys() == theirs.tensors.keys()
        assert all(ours.tensors[name].equal(theirs.tensors[name]) for name in ours.tensors)
    assert ours.state["rules"] == theirs.state["rules"]
    assert ours.state["means"] == theirs.state["means"]


def test_metrics_and_events_read_as_if_never_stopped(
    local: Path, bucket: Path, remote: str
) -> None:
    def lines(folder: Path) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in found]

    assert lines(bucket / "all" / "run") == lines(local / "run")
    event_files = files_of(bucket / "all" / "run" / "tensorboard")
    assert len(event_files) == 2 and all(len(data) > 100 for data in event_files.values())


def test_samples_export_and_new_videos_are_the_same(local: Path, bucket: Path, remote: str) -> None:
    for folder in ("run/samples", "made"):
        ours, theirs = files_of(local / folder), files_of(bucket / "all" / folder)
        ours.pop("generated.json", None)  # it names its source
        theirs.pop("generated.json", None)
        assert ours == theirs and ours
    name = "run/generator/model.safetensors"
    assert (local / name).read_bytes() == (bucket / "all" / name).read_bytes()


def test_nothing_holds_a_credential(bucket: Path, remote: str) -> None:
    for name, data in files_of(bucket).items():
        assert SECRET.encode() not in data and KEY.encode() not in data, name


def test_finished_data_set_and_run_are_left_as_they_are(
    bucket: Path, remote: str, options: tuple[str, ...]
) -> None:
    before = files_of(bucket / "all" / "data")
    prepare = ("prepare", "--input", f"{remote}/videos", "--output", f"{remote}/data")
    assert here(*prepare, *RUN, *options)[0] == 0
    assert files_of(bucket / "all" / "data") == before


def test_a_damaged_checkpoint_is_set_aside(
    bucket: Path, remote: str, options: tuple[str, ...]
) -> None:
    weights = weights_of(bucket / "all" / "run" / "checkpoints" / f"step_{STEPS:08d}")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    arguments = ("train", *RUN, f"data.shards={remote}/data", f"run.dir={remote}/run")
    said = succeeds(*arguments, *options)
    assert "sha256" in said and "step 8" in said
    assert weights_of(weights.parent).read_bytes() == whole, "the step again, bit by bit"
    assert storage.exists(f"{remote}/run/checkpoints/damaged_{STEPS:08d}/COMMITTED")


def test_a_run_through_faults_is_the_same_run(
    local: Path, bucket: Path, remote: str, options: tuple[str, ...]
) -> None:
    """Faults on every tenth request, then the storage is gone, then it is back."""
    port = int((bucket.parent / "port").read_text())
    kinds = ("slow_down", "unavailable", "internal", "reset", "half_body", "flip", "stall")
    checkpoints = bucket / "faults" / "checkpoints"
    with FaultProxy(port, always(*kinds, probability=0.1, seed=3)) as proxy:
        now_and_then, gone = proxy.faults, always("unavailable")

        def gone_after_a_checkpoint(number: int, request: Request) -> str:
            committed = (checkpoints / "step_00000004" / "COMMITTED").exists()
            return (gone if committed else now_and_then)(number, request)

        train = (
            "train", *RUN, f"data.shards={remote}/data", f"run.dir=s3://{BUCKET}/faults", *options
        )  # fmt: skip
        with proxy.failing(gone_after_a_checkpoint):
            done = run(
                *train, f"storage.endpoint_url={proxy.url}", "storage.retry_seconds=2",
                "storage.read_timeout_seconds=0.5", "storage.connect_timeout_seconds=0.5",
                "data.num_workers=1",
            )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "launch.py train: can't" in done.stderr and "HTTP 503" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(proxy.made) >= 5
    assert "resuming" in succeeds(*train)
    for name in ("generator/model.safetensors", f"samples/step_{STEPS:08d}.gif"):
        assert (bucket / "faults" / name).read_bytes() == (local / "run" / name).read_bytes()


def test_doctor_says_whether_storage_is_reachable(
    bucket: Path, remote: str, options: tuple[str, ...]
) -> None:
    there = ("doctor", *RUN, f"data.shards={remote}/data", f"run.dir=s3://{BUCKET}/new")
    code, said, _ = here(*there, *options)
    assert code == 0
    assert f"s3://{BUCKET}/new can be reached, written and read" in said and "all is well" in said
    assert not (bucket / "new" / ".distgan-doctor").exists()
    message = refused(
        *there,
        *options,
        "storage.endpoint_url=http://127.0.0.1:9",
        "storage.retry_seconds=1",
        code=1,
    )
    assert f"s3://{BUCKET}/new" in message and "127.0.0.1:9" in message


def test_bad_storage_ends_with_2_and_one_line(
    bucket: Path, remote: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    data, run_dir = f"data.shards={remote}/data", f"run.dir=s3://{BUCKET}/bad"
    train = ("train", *RUN, *options)
    done = run(*train, data, "run.dir=s3://nowhere/run")
    assert "no bucket 'nowhere'" in one_line(done.returncode, 2, done.stdout, done.stderr)
    assert "no data set in" in refused(*train, run_dir, f"data.shards=s3://{BUCKET}/none")
    assert "SignatureDoesNotMatch" in refused(*train, run_dir, data, AWS_SECRET_ACCESS_KEY="wrong")
    nothing = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "HOME": str(tmp_path)}
    message = refused(*train, run_dir, data, **nothing)
    assert "no credentials" in message and "AWS_PROFILE" in message
    message = refused(*train, run_dir, data, AWS_PROFILE="nobody")
    assert "AWS_PROFILE names is in no" in message and "AWS_CONFIG_FILE" in message
    with FaultProxy(int((bucket.parent / "port").read_text()), writes_denied) as proxy:
        endpoint = f"storage.endpoint_url={proxy.url}"
        message = refused(*train, run_dir, data, endpoint)
        assert "read-only" in message and f"s3://{BUCKET}/bad" in message
        output = f"s3://{BUCKET}/new-data"
        prepare = ("prepare", "--input", f"{remote}/videos", "--output", output, *RUN, *options)
        assert "read-only" in refused(*prepare, endpoint)
    assert not (bucket / "bad").exists() and not (bucket / "new-data").exists()


def test_credentials_in_the_configuration_are_refused(options: tuple[str, ...]) -> None:
    for override in (
        f"run.dir=s3://{KEY}:{SECRET}@{BUCKET}/run",
        f"storage.endpoint_url=https://{KEY}:{SECRET}@example.org",
    ):
        assert "credentials" in refused("train", *RUN, "data.shards=x", override)
    message = refused("train", *RUN, f"storage.secret={SECRET}")
    assert "unknown configuration key" in message and "set AWS_ACCESS_KEY_ID" in message


def test_generate_takes_keys_of_the_storage_section_only(remote: str) -> None:
    assert "storage section" in refused(*generate(remote), "seed=3")
