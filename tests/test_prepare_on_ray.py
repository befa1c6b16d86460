"""Prepare on Ray: the same bytes as in processes, also when a worker dies or the cluster is joined.

Starts of a cluster take seconds, so one private and one joined cluster serve all of it.
"""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cluster.prepare import OnRay, check_cpus, check_folders
from cluster.ray_cluster import connected
from distgan.config_loading import with_values
from distgan.data.prepare import prepare
from distgan.data.prepare_video import ClipSettings, prepare_video
from distgan.data.spooling import VideoJob
from distgan.errors import DistganError, UserError
from tests.killed_prepare import SMALL
from tests.object_servers import BUCKET, CREDENTIALS, OPTIONS, free_port, rclone_server
from tests.test_prepare import tree
from tests.tiny import REPOSITORY, one_thread
from tests.video_makers import textured, write_video

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
NUM_VIDEOS = 6


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(NUM_VIDEOS):
        write_video(root / f"{number}.mkv", textured(32, 48, 48, seed=number))
    (root / "broken.mp4").write_bytes(b"x" * 300)
    return root


@pytest.fixture(scope="module")
def in_processes(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("in_processes") / "out"
    prepare(str(videos), str(out), SMALL, show_progress=False)
    return tree(out)


@pytest.fixture(scope="module")
def private_cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(num_cpus=2, object_store_bytes=100_000_000):
            yield


def on_ray(videos: Path, out: Path, num_workers: int = 2) -> dict[str, bytes]:
    executor = OnRay(num_workers, (str(videos), str(out)))
    prepare(str(videos), str(out), SMALL, executor=executor, show_progress=False)
    return tree(out)


def test_the_same_bytes_as_in_processes(
    private_cluster: None, videos: Path, in_processes: dict[str, bytes], tmp_path: Path
) -> None:
    assert on_ray(videos, tmp_path / "out") == in_processes


def test_a_private_cluster_is_private(private_cluster: None) -> None:
    """All its sockets are on the loopback interface; its token is in a folder of its own."""
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ
    session = str(token.parent)
    servers = {pid for pid in process_ids() if session in command_line(pid)}
    servers |= {pid for pid in process_ids() if parent_of(pid) in servers}
    places = {place for pid in servers for place in listening(pid)}
    assert len(places) >= 4, "GCS, raylet and their agents listen"
    assert all(is_loopback(place.partition(":")[0]) for place in places), places


def process_ids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def listening(pid: int) -> set[str]:
    """Hexadecimal ADDRESS:PORT that a process listens on, as /proc/net/tcp shows them."""
    try:
        handles = [str(f.readlink()) for f in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return set()
    inodes = {h[8:-1] for h in handles if h.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and parts[9] in inodes:
                found.add(parts[1])
    return found


def is_loopback(address: str) -> bool:
    return address in ("0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000")


def die_once(folder: str, settings: ClipSettings, job: VideoJob) -> None:
    """Kills its worker process at the first try of one video."""
    mark = Path(folder, f"{job.number}")
    with mark.open("a") as file:
        file.write("tried\n")
    if job.number == 1 and mark.read_text().count("\n") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    prepare_video(job, settings)


def test_a_killed_worker_does_not_change_the_bytes(
    private_cluster: None,
    videos: Path,
    in_processes: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "tries").mkdir()
    work = partial(die_once, str(tmp_path / "tries"))

    def with_deaths(settings: ClipSettings) -> object:
        return partial(work, settings)

    monkeypatch.setattr("distgan.data.prepare.prepare_video", die_once)
    monkeypatch.setattr(
        "distgan.data.prepare.partial", lambda function, settings: with_deaths(settings)
    )
    assert on_ray(videos, tmp_path / "out") == in_processes
    tries = {p.name: p.read_text().count("\n") for p in (tmp_path / "tries").iterdir()}
    assert tries == {str(n): 2 if n == 1 else 1 for n in range(NUM_VIDEOS + 1)}


def always_die(job: VideoJob) -> None:
    if job.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def fail(job: VideoJob) -> None:
    raise UserError(f"{job.path} is wrong")


def test_a_worker_that_always_dies_is_one_clear_error(private_cluster: None) -> None:
    jobs = [VideoJob(number=n, root="/", path=f"{n}.mp4", spool="/x") for n in range(3)]
    with pytest.raises(DistganError, match=r"'1.mp4' was lost 3 times.*take that video out"):
        list(OnRay(1, ()).run(always_die, jobs))
    with pytest.raises(UserError, match=r"^0.mp4 is wrong$"):
        list(OnRay(2, ()).run(fail, jobs))


def test_limits_hold_in_ray_workers(private_cluster: None, videos: Path, tmp_path: Path) -> None:
    config = with_values(SMALL, {"prepare.limits.max_cpu_seconds": 1e-9})
    executor = OnRay(2, ())
    with pytest.raises(UserError, match=f"{NUM_VIDEOS} videos over max cpu seconds"):
        prepare(str(videos), str(tmp_path / "o"), config, executor=executor, show_progress=False)


def test_more_workers_than_cpus_and_folders_of_one_machine_are_refused(
    private_cluster: None, videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"num_workers=3 is more than the 2 CPUs.*num_workers=2"):
        on_ray(videos, tmp_path / "out", num_workers=3)
    check_cpus(2, 2)
    check_folders(("/data", "s3://bucket/out"), "10.0.0.1", {"10.0.0.1"})
    check_folders(("s3://bucket/in", "s3://bucket/out"), "10.0.0.1", {"10.0.0.1", "10.0.0.2"})
    with pytest.raises(UserError, match=r"/data is a folder of this machine.*10\.0\.0\.2.*URLs"):
        check_folders(("s3://bucket/in", "/data"), "10.0.0.1", {"10.0.0.1", "10.0.0.2"})


def launch_prepare(
    videos: str, out: str, *more: str, temporary: str, **environment: str
) -> subprocess.Popen[str]:
    settings = (
        "data.resolution=32", "data.clip_frames=8", "prepare.denoise.kind=none",
        "prepare.clip_format=npy", "prepare.shard_megabytes=0.07", "cluster.num_workers=2", *more,
    )  # fmt: skip
    command = [sys.executable, str(REPOSITORY / "launch.py"), "prepare", "--input", videos]
    return subprocess.Popen(
        [*command, "--output", out, *settings],
        env={**one_thread(), **CREDENTIALS, **environment, "TMPDIR": temporary},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Ray's sockets must have short paths."""
    with tempfile.TemporaryDirectory(prefix="dg-", dir="/tmp") as folder:
        yield folder


def test_a_joined_cluster_is_used_and_left_running(
    videos: Path, in_processes: dict[str, bytes], tmp_path: Path, short_folder: str
) -> None:
    """As a command, from and to object storage; credentials come from the nodes' environment."""
    port = free_port()
    (Path(short_folder) / "t").mkdir()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret-of-this-test-" + "0" * 20}
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}"]
    head = subprocess.Popen(
        [*ray, "--num-cpus=2", "--object-store-memory=100000000", "--include-dashboard=false",
         f"--temp-dir={short_folder}/r", "--disable-usage-stats", "--block"],
        env={**one_thread(), **CREDENTIALS, **token, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_port(port, head)
        with rclone_server(tmp_path / "server") as s3:
            shutil.copytree(videos, tmp_path / "server" / BUCKET / "in")
            child = launch_prepare(
                f"s3://{BUCKET}/in", f"s3://{BUCKET}/out", *OPTIONS,
                f"storage.endpoint_url=http://127.0.0.1:{s3}",
                temporary=f"{short_folder}/t", RAY_ADDRESS=f"127.0.0.1:{port}", **token,
            )  # fmt: skip
            out, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors
            assert tree(tmp_path / "server" / BUCKET / "out") == in_processes
        assert "videos/s" in errors and "broken" not in errors and "clips" in out
        assert head.poll() is None
        wait_for_port(port, head)
        assert list(Path(short_folder, "t").iterdir()) == []
    finally:
        for pid in process_ids():  # at once: a head that is asked to end drains for half a minute
            if short_folder in command_line(pid):
                os.kill(pid, signal.SIGKILL)
        head.kill()
        head.wait()


def wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            # The node's own address: an outer one, or that of the loopback interface.
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return


def test_sigterm_takes_the_private_cluster_along_and_the_rest_is_done_later(
    videos: Path, tmp_path: Path, short_folder: str
) -> None:
    scene = write_video(tmp_path / "scene.h264", textured(24, 320, 240)).read_bytes()
    (tmp_path / "in").mkdir()
    shutil.copy(videos / "0.mkv", tmp_path / "in/0.mkv")
    (tmp_path / "in/1.h264").write_bytes(scene * 800)  # half a minute of work
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    source = str(tmp_path / "in")
    child = launch_prepare(source, str(out), temporary=short_folder, HOME=str(home))
    try:
        deadline = time.monotonic() + 60
        while not ((out / ".prepare/00000000.tar").exists() and any(out.rglob("*.partial"))):
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 143, errors
    assert errors.splitlines()[-1].endswith("interrupted") and "Traceback" not in errors
    deadline = time.monotonic() + 10
    while [pid for pid in process_ids() if short_folder in command_line(pid)]:
        assert time.monotonic() < deadline, "the cluster outlives its owner"
        time.sleep(0.1)
    assert list(Path(short_folder).iterdir()) == [] and list(home.iterdir()) == []
    kept = sorted(name for name in tree(out) if not name.endswith(".partial"))
    assert kept == ["00000000.tar", "lock", "plan.json"]
