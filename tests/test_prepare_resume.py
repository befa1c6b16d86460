"""Prepare that is killed and run again: the same bytes, and no finished video worked on twice."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from distgan.data.journal import Plan, open_journal
from distgan.data.manifest import MANIFEST_NAME
from distgan.data.prepare import prepare
from distgan.data.progress import Progress
from distgan.errors import UserError
from tests.killed_prepare import SMALL, prepare_until
from tests.object_servers import BUCKET, options_for, rclone_server, with_options
from tests.processes import running
from tests.test_prepare import PROGRAM, run, tree
from tests.video_makers import textured, write_video

NUM_VIDEOS = 9
PLACES = [
    "video 0",  # after the first video
    "video 4",
    "half 0",  # in the middle of writing the first shard
    "half 2",
    "shard 1",  # between a shard and its record
    "record 1",  # between the record and the removal of what it covers
    "before-manifest 0",  # after the last shard
    "after-manifest 0",
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine short videos of 2 clips each; one of them broken, one too short."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(NUM_VIDEOS):
        write_video(root / f"{number}.mkv", textured(8 if number == 3 else 32, 48, 48, seed=number))
    (root / "5.mkv").write_bytes(b"x" * 300)
    return root


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    prepare(str(videos), str(out), SMALL, show_progress=False)
    made = tree(out)
    assert len([name for name in made if name.startswith("shard-")]) == 5
    return made


def start(videos: str, out: str, log: Path, place: str, port: int = 0) -> int:
    """Prepares in a process that kills itself at a place; returns its exit code."""
    context = multiprocessing.get_context("forkserver")  # imports once: a start takes little time
    context.set_forkserver_preload(["tests.killed_prepare", "distgan.data.prepare"])
    child = context.Process(target=prepare_until, args=(videos, out, str(log), place, port))
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    child.join()
    assert code is not None, "it did not end"
    return code


def worked_on(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere_and_run_again_gives_the_same_bytes(
    videos: Path, undisturbed: dict[str, bytes], tmp_path: Path, place: str
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    assert start(str(videos), str(out), log, place) == -signal.SIGKILL
    assert (out / MANIFEST_NAME).exists() == place.startswith("after-manifest")
    assert start(str(videos), str(out), log, "nowhere") == 0
    assert tree(out) == undisturbed
    assert sorted(worked_on(log)) == list(range(NUM_VIDEOS)), "each video was worked on once"
    assert not (out / ".prepare").exists()


def test_killed_at_every_shard_in_turn(
    videos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    kills = 0
    while code := start(str(videos), str(out), log, "record *"):
        assert code == -signal.SIGKILL
        kills += 1
    assert kills == 5
    assert tree(out) == undisturbed
    assert sorted(worked_on(log)) == list(range(NUM_VIDEOS))


def test_killed_on_object_storage(
    videos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root, log = tmp_path / "server", tmp_path / "log"
    with rclone_server(root) as port:
        shutil.copytree(videos, root / BUCKET / "videos")
        source, out = f"s3://{BUCKET}/videos", f"s3://{BUCKET}/out"
        for place in ("video 2", "half 0", "record 0", "before-manifest 0"):
            assert start(source, out, log, place, port) == -signal.SIGKILL
        assert start(source, out, log, "nowhere", port) == 0
        with with_options(options_for(port)):
            config = SMALL.model_copy(update={"storage": options_for(port)})
            prepare(source, out, config, show_progress=False)
        assert tree(root / BUCKET / "out") == undisturbed
    assert sorted(worked_on(log)) == list(range(NUM_VIDEOS))


def test_worker_processes_end_with_a_killed_parent_and_the_rest_is_done_once(
    tmp_path: Path,
) -> None:
    scene = write_video(tmp_path / "scene.h264", textured(24, 320, 240)).read_bytes()
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / f"in/{number}.h264").write_bytes(scene * (3 if number < 4 else 400))
    (tmp_path / "program.py").write_text(PROGRAM)
    out = tmp_path / "out"
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "in"), str(out), "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    spools = [out / f".prepare/{number:08d}.tar" for number in range(4)]

    def two_are_left() -> bool:
        return all(s.exists() for s in spools) and len(list(out.rglob("*.partial"))) == 2

    with running(command, environment, two_are_left) as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        deadline = time.monotonic() + 10
        while processes_with(str(out)) + processes_of_group(child.pid):
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.05)
    before = {spool: spool.stat().st_mtime_ns for spool in spools}
    for number in (4, 5):
        shutil.copy(tmp_path / "in/0.h264", tmp_path / f"in/{number}.h264")
    with pytest.raises(UserError, match=r"made otherwise .*'4.h264' was written anew"):
        run(tmp_path / "in", out)
    assert {spool: spool.stat().st_mtime_ns for spool in spools} == before


def processes_of_group(group: int) -> list[str]:
    """Live processes in a process group, zombies left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(pgrp) == group and state != "Z":
            found.append(folder.name)
    return found


def processes_with(word: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if word.encode() in command and int(folder.name) != os.getpid():
            found.append(folder.name)
    return found


def test_other_settings_or_videos_are_refused_by_name(
    videos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    source, out, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    shutil.copytree(videos, source)
    start(str(source), str(out), log, "video 4")
    before = tree(out)

    def refused(words: str, **changes: object) -> None:
        with pytest.raises(UserError, match=words) as caught:
            run(source, out, prepare__shard_megabytes=0.07, **changes)
        assert "run the command that began it again" in str(caught.value)
        assert tree(out) == before

    refused("prepare.fit=crop there, pad here", prepare__fit="pad")
    refused("data.resolution=32 there, 16 here", data__resolution=16)
    (source / "new.mkv").write_bytes(b"x")
    refused("the video 'new.mkv' is new")
    (source / "new.mkv").rename(tmp_path / "new.mkv")
    (source / "8.mkv").rename(tmp_path / "8.mkv")
    refused("the video '8.mkv' is gone")
    (tmp_path / "8.mkv").rename(source / "8.mkv")
    os.utime(source / "0.mkv", (0, 0))
    refused("the video '0.mkv' was written anew")
    shutil.copystat(videos / "0.mkv", source / "0.mkv")
    # The number of processes is no part of the result.
    run(source, out, prepare__shard_megabytes=0.07, prepare__num_processes=2)
    assert tree(out) == undisturbed


def test_another_plan_starts_over_while_no_video_is_finished(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".prepare").mkdir(parents=True)
    plan = {"version": "0", "settings": {"data.resolution": 8}, "videos": {}}
    (out / ".prepare/plan.json").write_text(json.dumps(plan))
    (out / ".prepare/00000000.tar.17.partial").write_bytes(b"half")
    run(videos, out)
    assert (out / MANIFEST_NAME).exists() and not (out / ".prepare").exists()


def test_two_at_once_in_one_folder_are_refused(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = """
import sys, time
from pathlib import Path
from distgan.data.journal import Plan, open_journal
with open_journal(sys.argv[1], Plan(version="", settings={}, videos={})):
    Path(sys.argv[2]).touch()
    time.sleep(60)
"""
    ready = tmp_path / "ready"
    command = [sys.executable, "-c", program, str(out), str(ready)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    with running(command, environment, ready.exists) as child:
        with pytest.raises(UserError, match="another prepare is at work"):
            run(videos, out)
        child.kill()
        child.wait()
    run(videos, out)  # the lock went with its owner
    assert (out / MANIFEST_NAME).exists()


def test_a_lost_shard_or_damaged_spool_is_named(videos: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    start(str(videos), str(out), log, "record 1")
    spool = max((out / ".prepare").glob("*.tar"))
    whole = spool.read_bytes()
    spool.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{spool.name} is damaged.*delete it and run"):
        run(videos, out, prepare__shard_megabytes=0.07)
    spool.write_bytes(whole)
    (out / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"lost or changed its shard-000001\.tar"):
        run(videos, out, prepare__shard_megabytes=0.07)


def test_a_refused_folder_is_left_as_it_was(tmp_path: Path) -> None:
    plan = Plan(version="", settings={}, videos={})
    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        with pytest.raises(RuntimeError), open_journal(str(tmp_path / name), plan) as journal:
            shutil.rmtree(journal.folder)
            raise RuntimeError
    assert sorted(tree(tmp_path)) == [] and (tmp_path / "there").is_dir()
    assert not (tmp_path / "new").exists()


def test_work_of_earlier_starts_does_not_enter_the_rate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress(1000, 900, clips=7, show=True) as progress:
        for number in range(30):
            progress.update(is_new=number >= 10, clips=2)
        assert (
            progress.line(10.0)
            == "prepare: 920 of 1000 videos, 2.00 videos/s, 00:40 left, 67 clips"
        )
    said = capsys.readouterr().err
    assert "going on; 900 of 1000 videos are finished" in said
    assert "20 videos in 00:00" in said and "900 finished before" in said
    assert "\r" not in said, "there is no terminal to draw a bar on"
