"""Writing a checkpoint may fail or be killed anywhere: what was committed before stays whole."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distgan import storage
from distgan.checkpoint import (
    Fragment,
    checkpoint_folder,
    commit,
    committed_steps,
    drop_old,
    load_newest,
    set_aside_after,
    write_fragments,
)
from distgan.errors import UserError
from tests.checkpoints import STATE, save, save_checkpoint

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
    with pytest.raises(UserError, match="No space left") as raised:
        save(tmp_path, 2)
    assert "step_00000002" in str(raised.value)
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["step_00000001"]
    loaded, problems = load_newest(str(tmp_path))
    assert loaded is not None and loaded.step == 1 and problems == []


class Killed(BaseException):
    """Nothing runs after it."""


def save_in_two_pieces(run: Path, step: int) -> None:
    """As two ranks do, one after the other; two committed checkpoints are kept."""
    folder = checkpoint_folder(str(run), step)
    pieces = [[Fragment("x", (10,), start, torch.full((5,), float(step)))] for start in (0, 5)]
    parts = [write_fragments(folder, f"rank-{n:05d}", piece) for n, piece in enumerate(pieces)]
    commit(folder, parts, STATE | {"step": step})
    drop_old(str(run), keep=2)


POINTS = [("write", number, share) for number in range(1, 6) for share in range(11)]
POINTS += [("removal", number, 0) for number in range(1, 4)]


@pytest.mark.parametrize("point", POINTS, ids=lambda p: "-".join(map(str, p)))
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(
    point: tuple[str, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """58 points: after 0 to 10 tenths of each file's bytes, and within the removal of old ones."""
    for step in (1, 2):
        save_in_two_pieces(tmp_path, step)
    kind, number, tenths = point

    def die(path: str, data: bytes) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.partial")
        beside.write_bytes(data[: len(data) * tenths // 10])
        raise Killed

    if kind == "write":
        fail_at_write(number, die, monkeypatch)
    else:
        removals = iter(range(1, 99))
        unlink = os.unlink

        def dying_unlink(*arguments: Any, **options: Any) -> None:
            if next(removals) == number:
                raise Killed
            unlink(*arguments, **options)

        monkeypatch.setattr(os, "unlink", dying_unlink)
    with pytest.raises(Killed):
        save_in_two_pieces(tmp_path, 3)
    monkeypatch.undo()
    loaded, problems = load_newest(str(tmp_path))
    newest = 2 if kind == "write" else 3
    assert loaded is not None and loaded.step == newest and problems == []
    assert loaded.tensors["x"].eq(newest).all()
    set_aside_after(str(tmp_path), newest)
    save_in_two_pieces(tmp_path, 4)
    assert committed_steps(str(tmp_path)) == [newest, 4]


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
