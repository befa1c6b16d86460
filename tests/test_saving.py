"""A checkpoint is written behind the training's back, and is still one commit of one moment."""

import errno
import os
import threading
import weakref
from pathlib import Path

import pytest
import torch

from distgan import storage
from distgan.checkpoint import committed_steps, load_newest, set_aside_after, whole
from distgan.errors import StorageError, UserError
from distgan.saving import Saver, _Thread
from distgan.team import Alone

STATE = {"step": 1}


class SlowDisk:
    """Holds every write back until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        write_bytes = storage.write_bytes

        def write(path: str, data: bytes) -> None:
            assert self.go_on.wait(30)
            write_bytes(path, data)

        monkeypatch.setattr(storage, "write_bytes", write)


def until_written(saver: Saver) -> None:
    for _ in range(3000):
        if saver.has_written:
            return
        threading.Event().wait(0.01)
    pytest.fail("not written after 30 s")


def test_training_goes_on_while_a_slow_disk_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, saver = SlowDisk(monkeypatch), Saver(str(tmp_path), 2, Alone())
    weights = torch.zeros(3)
    saver.begin(1, whole({"x": weights}), STATE)
    assert not saver.has_written
    weights += 1  # the next step's update
    assert committed_steps(str(tmp_path)) == []
    threading.Event().wait(0.1)
    disk.go_on.set()
    until_written(saver)
    assert saver.seconds is None
    assert committed_steps(str(tmp_path)) == []  # other ranks may not have written yet
    saver.commit()
    saver.finish()
    loaded, _ = load_newest(str(tmp_path))
    assert loaded is not None and loaded.tensors["x"].eq(0).all()
    assert saver.seconds is not None and 0.1 <= saver.seconds < 30


def begin_to_save(saver: Saver, value: float) -> None:
    saver.begin(1, whole({"x": torch.full((3,), value)}), STATE)


def commit_whole(saver: Saver) -> None:
    until_written(saver)
    saver.commit()
    saver.finish()


def assert_newest_holds(run: str, value: float) -> None:
    loaded, problems = load_newest(run)
    assert loaded is not None and not problems and loaded.tensors["x"].eq(value).all()


def two_writers(run: Path) -> tuple[Saver, Saver]:
    """Of two processes that write to the same run, as after a partition, when nobody knows that the
    first one lives on."""
    return Saver(str(run), 2, Alone()), Saver(str(run), 2, Alone())


def test_a_writer_whose_pieces_another_has_cleared_away_commits_nothing(tmp_path: Path) -> None:
    first, second = two_writers(tmp_path)
    begin_to_save(first, 1.0)
    until_written(first)
    set_aside_after(str(tmp_path), 0)  # as the second one does when it starts
    begin_to_save(second, 2.0)
    until_written(second)
    with pytest.raises(UserError, match=r"two runs are writing to one run\.dir"):
        commit_whole(first)
    assert committed_steps(str(tmp_path)) == []
    commit_whole(second)
    assert_newest_holds(str(tmp_path), 2.0)


def test_a_writer_that_comes_second_or_fails_leaves_the_first_ones_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (*two_writers(tmp_path), Saver(str(tmp_path), 2, Alone()))
    for saver, value in ((first, 1.0), (second, 2.0), (third, 3.0)):
        begin_to_save(saver, value)
        until_written(saver)
    commit_whole(first)
    with pytest.raises(UserError, match=r"two runs are writing to one run\.dir"):
        commit_whole(second)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "creating", full)
    with pytest.raises(UserError, match="No space left"):
        commit_whole(third)
    assert_newest_holds(str(tmp_path), 1.0)


def test_what_another_writer_writes_late_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_writers(tmp_path)
    write_bytes, go_on = storage.write_bytes, threading.Event()

    def write(path: str, data: bytes) -> None:
        if torch.ones(3).numpy().tobytes() in data:  # the first one's
            assert go_on.wait(30)
        write_bytes(path, data)

    monkeypatch.setattr(storage, "write_bytes", write)
    begin_to_save(first, 1.0)
    begin_to_save(second, 2.0)
    commit_whole(second)
    go_on.set()
    until_written(first)
    assert_newest_holds(str(tmp_path), 2.0)


def test_the_next_one_waits_for_the_one_before(tmp_path: Path) -> None:
    saver = Saver(str(tmp_path), 2, Alone())
    for step in (1, 2, 3):
        saver.begin(step, whole({"x": torch.full((3,), float(step))}), STATE)
    assert committed_steps(str(tmp_path)) == [1, 2]
    saver.finish()
    assert committed_steps(str(tmp_path)) == [2, 3]


def test_the_copy_lasts_until_it_is_written(tmp_path: Path) -> None:
    """Or two would lie in memory as the next one is made."""
    saver, fragments = Saver(str(tmp_path), 2, Alone()), whole({"x": torch.zeros(3)})
    copy = weakref.ref(fragments[0].values)
    saver.begin(1, fragments, STATE)
    del fragments
    until_written(saver)
    assert copy() is None
    saver.finish()


def test_what_must_come_before_comes_before_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    saver, go_on = Saver(str(tmp_path), 2, Alone()), threading.Event()
    saver.begin(1, whole({"x": torch.zeros(3)}), STATE, before=lambda: assert_true(go_on.wait(30)))
    assert not saver.has_written
    go_on.set()
    until_written(saver)

    def fail() -> None:
        raise StorageError("no metrics")

    saver.begin(2, whole({"x": torch.zeros(3)}), STATE, before=fail)
    with pytest.raises(StorageError, match="no metrics"):
        saver.finish()
    assert committed_steps(str(tmp_path)) == [1]


def assert_true(value: bool) -> None:
    assert value


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_an_error_of_the_writing_thread_reaches_the_training(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(str(tmp_path), 2, Alone())
    write_bytes, calls = storage.write_bytes, iter(range(1, 99))

    def write(path: str, data: bytes) -> None:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        write_bytes(path, data)

    monkeypatch.setattr(storage, "write_bytes", write)
    saver.begin(1, whole({"x": torch.zeros(3)}), STATE)
    with pytest.raises(UserError, match="No space left"):
        for _ in range(2):  # the pieces, then the commit
            until_written(saver) if failing == 1 else saver.finish()
    assert committed_steps(str(tmp_path)) == []


def test_an_error_that_comes_while_it_is_asked_for_is_not_taken_for_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()

    def fail() -> None:
        go_on.wait(30)
        raise OSError(28, "No space left on device")

    thread = _Thread(fail)

    def ends_just_now() -> bool:
        go_on.set()
        thread.join()
        return False

    monkeypatch.setattr(thread, "is_alive", ends_just_now)
    with pytest.raises(OSError, match="No space left"):
        thread.ended()
