"""Writing a checkpoint may fail or be killed anywhere: what was committed before stays whole."""

import builtins
import contextlib
import errno
import functools
import io
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distgan import drivers, storage
from distgan.checkpoint import (
    COMMITTED,
    MANIFEST,
    DamagedCheckpointError,
    Fragment,
    checkpoint_folder,
    commit,
    committed_steps,
    drop_old,
    load_newest,
    read_checkpoint,
    refuse_if_committed,
    set_aside_after,
    write_fragments,
)
from distgan.checkpoint import STATE as STATE_FILE
from distgan.errors import DistganError, StorageError, UserError
from tests.checkpoints import STATE, save, save_checkpoint
from tests.damage import flip_bit

WRITES = 4  # weights, state, manifest, mark


def fail_at_write(
    number: int, fail: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Runs `fail` in place of one write, counted from 1; the list collects the paths of all."""
    paths: list[str] = []
    write_bytes = storage.write_bytes

    def write(path: str, data: bytes) -> None:
        paths.append(path)
        if len(paths) == number:
            fail(path, data)
        else:
            write_bytes(path, data)

    monkeypatch.setattr(storage, "write_bytes", write)
    return paths


@pytest.mark.parametrize("failing", range(1, WRITES + 2))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_leaves_the_one_before(
    failing: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(path: str, data: bytes) -> None:
        raise OSError(number, "No space left on device")

    paths = fail_at_write(failing, full, monkeypatch)
    if failing > WRITES:
        save(tmp_path, 2)
        assert len(paths) == WRITES and committed_steps(str(tmp_path)) == [1, 2]
        return
    kind = StorageError if number == errno.EIO else UserError  # which may pass, and which not
    with pytest.raises(kind, match="No space left") as raised:
        save(tmp_path, 2)
    assert "step_00000002" in str(raised.value)
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["step_00000001"]
    loaded, problems = load_newest(str(tmp_path))
    assert loaded is not None and loaded.step == 1 and problems == []


def save_in_two_pieces(run: str, step: int) -> None:
    """As two ranks do, one after the other; two committed checkpoints are kept."""
    folder = checkpoint_folder(run, step)
    refuse_if_committed(folder)
    pieces = [[Fragment("x", (10,), start, torch.full((5,), float(step)))] for start in (0, 5)]
    parts = [write_fragments(folder, f"rank-{n:05d}", piece) for n, piece in enumerate(pieces)]
    commit(folder, parts, STATE | {"step": step})
    drop_old(run, keep=2)


def start_and_save(run: str) -> None:
    """What a start does with the checkpoints it finds, and the next one."""
    checkpoint, _ = load_newest(run)
    assert checkpoint is not None
    set_aside_after(run, checkpoint.step)
    save_in_two_pieces(run, checkpoint.step + 1)


def chosen(run: str) -> int:
    """The step that a start goes on from. Each that counts as committed proves whole, but for one
    that a test has damaged."""
    for step in committed_steps(run):
        try:
            checkpoint = read_checkpoint(checkpoint_folder(run, step), step)
        except DamagedCheckpointError as error:
            assert "its sha256 differs" in str(error)  # all of it is there
            continue
        assert checkpoint.tensors["x"].tolist() == [step] * 10
        assert checkpoint.state == STATE | {"step": step}
    newest, _ = load_newest(run)
    assert newest is not None
    return newest.step


def assert_goes_on(run: str) -> None:
    """The next start finds its way, and nothing half-written stays behind it."""
    newest = chosen(run)
    start_and_save(run)
    assert chosen(run) == newest + 1 and committed_steps(run) == [newest, newest + 1]
    for name in storage.list_names(f"{run}/checkpoints"):
        left = storage.list_names(f"{run}/checkpoints/{name}")
        assert {file.partition(".claim-")[0] for file in left} == FILES, (name, left)


FILES = {"rank-00000.safetensors", "rank-00001.safetensors", STATE_FILE, MANIFEST, COMMITTED}
CHANGES = (
    "mkdir", "open", "write", "pwrite", "fsync", "fdatasync", "truncate", "ftruncate", "replace",
    "rename", "link", "symlink", "unlink", "remove", "rmdir",
)  # fmt: skip
"""What of module `os` changes files, as pathlib, shutil and tempfile call it too."""
ENDED, FAILED, TOLD, KILLED = range(4)
"""How a process ended that was to be killed, or whose disk was to fail; by exit code."""


class Kill:
    """Ends its process, as SIGKILL would, before one of the calls that change the file system:
    before an opening for writing, a removal, an fsync, ..., and within each write, of which then
    nothing, a byte, some, most, or all but a byte has arrived."""

    def __init__(self, number: int, *, fails: bool) -> None:
        """`number` counts from 1. `fails`: this one call does, and nothing is killed."""
        self.number, self.fails = number, fails
        self.seen: list[str] = []

    def point(self, name: str) -> None:
        self.seen.append(name)
        if len(self.seen) == self.number:
            if self.fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os._exit(KILLED)

    def install(self) -> None:
        """For good: for a process that does nothing else."""
        for name in CHANGES:
            setattr(os, name, self._before(name, getattr(os, name)))
        io.open = builtins.open = self._open

    def _before(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            reads = name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not reads:
                self.point(name)
            return call(*arguments, **options)

        return counted

    def _open(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return _OPEN(file, mode, *arguments, **options)
        assert "b" in mode, f"{file} is written as text"
        self.point("open")
        return _CutWrites(self, file, mode)


_OPEN = io.open


class _CutWrites(io.FileIO):
    def __init__(self, kill: Kill, file: Any, mode: str) -> None:
        super().__init__(file, mode.replace("b", ""))
        self.kill = kill

    def write(self, data: Any) -> int:
        size = len(data)
        for start, end in itertools.pairwise([0, 1, size // 3, 2 * size // 3, size - 1, size]):
            self.kill.point("write")
            super().write(data[start:end])
        return size


def stopped_at(number: int, work: Callable[[], object], noted: Path, *, fails: bool = False) -> int:
    """How `work` ended in a process of its own (forked, which is quick) in which that call is the
    last, or fails. If there are fewer calls, `noted` gets the names of all."""
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            kill = Kill(number, fails=fails)
            kill.install()
            work()
            code = ENDED
            with _OPEN(noted, "w") as file:
                file.write(" ".join(kill.seen))
        except DistganError:
            code = TOLD
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def two_checkpoints(run: Path) -> None:
    for step in (1, 2):
        save_in_two_pieces(str(run), step)


def left_behind(run: Path) -> None:
    """Also what earlier starts and kills may leave: a third that is damaged, one that was set
    aside before it, a half-written fourth."""
    two_checkpoints(run)
    folder = run / "checkpoints"
    for name in ("damaged_00000003", "step_00000003", "step_00000004"):
        shutil.copytree(folder / "step_00000002", folder / name)
    flip_bit(folder / "step_00000003" / "rank-00000.safetensors", -1)
    (folder / "step_00000004" / COMMITTED).unlink()


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls a plug here: what a killed process has written stays written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize(
    ("before", "work", "least"),
    [
        (two_checkpoints, lambda run: save_in_two_pieces(run, 3), 55),
        (left_behind, start_and_save, 65),
    ],
    ids=["a save", "a start and its save"],
)
def test_a_kill_before_any_change_of_the_disk_leaves_a_whole_checkpoint(
    before: Callable[[Path], None], work: Callable[[str], None], least: int, tmp_path: Path
) -> None:
    """At every call in turn, until the work ends by itself. Once the new checkpoint is chosen, it
    stays chosen: there is one moment of the commit."""
    before(tmp_path / "start")
    found: list[int] = []
    run = ""
    for number in itertools.count(1):
        shutil.copytree(tmp_path / "start", run := str(tmp_path / str(number)))
        ended = stopped_at(number, functools.partial(work, run), tmp_path / "calls")
        if ended != KILLED:
            break
        found.append(chosen(run))
        assert_goes_on(run)
        shutil.rmtree(run)
    assert ended == ENDED and chosen(run) == 3
    assert set(found) == {2, 3} and found == sorted(found)
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == len(found) >= least
    assert {"mkdir", "open", "write", "fsync", "replace", "unlink", "rmdir"} <= set(calls)
    assert calls.count("open") == len(FILES)


@pytest.mark.usefixtures("quick_disk")
def test_a_disk_that_fails_at_any_call_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """And the run ends with a word to its user."""
    two_checkpoints(tmp_path / "start")
    found: list[int] = []
    values, state = {"x": torch.full((10,), 3.0)}, STATE | {"step": 3}
    for number in itertools.count(1):
        shutil.copytree(tmp_path / "start", run := str(tmp_path / str(number)))
        save_third = functools.partial(save_checkpoint, run, 3, values, state, keep=2)
        ended = stopped_at(number, save_third, tmp_path / "calls", fails=True)
        if ended == ENDED:
            calls = (tmp_path / "calls").read_text().split()
            if len(calls) < number:
                break
            assert calls[number - 1] == "mkdir" and chosen(run) == 3  # of a folder that is there
            continue
        assert ended == TOLD
        found.append(chosen(run))
        left = storage.list_names(f"{run}/checkpoints")
        assert ("step_00000003" in left) == (found[-1] == 3)
        start_and_save(run)
        assert committed_steps(run) == [found[-1], found[-1] + 1] == [chosen(run) - 1, chosen(run)]
        shutil.rmtree(run)
    assert set(found) == {2, 3} and found == sorted(found) and len(found) >= 40


class Killed(BaseException):
    """Nothing runs after it."""


def test_a_kill_before_any_request_leaves_a_whole_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On object storage, where a write is one request, and a commit takes several."""
    found: list[int] = []
    ask = drivers.Request.run
    for number in itertools.count(1):
        run = f"memory://kills/{number}"
        for step in (1, 2):
            save_in_two_pieces(run, step)
        requests = itertools.count(1)

        def dying(*arguments: Any, last: int = number, made: Any = requests) -> Any:
            if next(made) >= last:  # a killed process asks for nothing more
                raise Killed
            return ask(*arguments)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(drivers.Request, "run", dying)
            save_in_two_pieces(run, 3)
            break
        found.append(chosen(run))
        assert_goes_on(run)
    assert set(found) == {2, 3} and found == sorted(found)
    assert len(found) >= 20


def test_a_failed_write_leaves_neither_file_nor_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def failing(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", failing)
    with pytest.raises(OSError, match="No space"):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old" and storage.list_names(str(tmp_path)) == ["file"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode != 0:
        pytest.skip(f"no right to mount a small file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    def write(step: int) -> None:
        values = {"x": torch.full((25_000,), float(step))}  # 100 KB
        save_checkpoint(str(small_disk), step, values, STATE, keep=2)

    write(1)
    write(2)
    with pytest.raises(UserError, match="No space left"):
        write(3)
    assert committed_steps(str(small_disk)) == [1, 2]
    loaded, problems = load_newest(str(small_disk))
    assert loaded is not None and problems == []
    assert loaded.tensors["x"].eq(2).all()
    assert storage.list_names(str(small_disk / "checkpoints")) == [
        "step_00000001", "step_00000002",
    ]  # fmt: skip
