"""Temporary folders: those of killed processes go at the next start, all others stay."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from distgan.temporary import TemporaryFolder, remove_abandoned, temporary_folder
from tests.processes import running

HOLDER = """
import sys, time
from distgan.temporary import TemporaryFolder
folder = TemporaryFolder()
(folder.path / "video.mp4").write_bytes(b"x")
open(sys.argv[1], "w").write(str(folder.path))
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, here and in processes that start."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_what_a_killed_process_left_goes_and_what_a_live_one_holds_stays(
    place: Path, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])}

    def is_made() -> bool:
        return note.exists() and bool(note.read_text())

    with running([sys.executable, "-c", HOLDER, str(note)], environment, is_made) as child:
        folder = Path(note.read_text())
        assert remove_abandoned() == [] and (folder / "video.mp4").exists()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert (folder / "video.mp4").exists()
    with temporary_folder() as mine:
        assert not folder.exists(), "a new folder sweeps first"
        assert remove_abandoned() == [] and mine.exists()
    assert list(place.iterdir()) == []


def test_only_our_own_kind_of_folder_is_ever_removed(place: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / ".owner").touch()
    (place / "distgan-link").symlink_to(target)
    (place / "distgan-file").write_bytes(b"x")
    (place / "distgan-other").mkdir()  # no owner is named: nothing is proven
    (place / "other").mkdir()
    (place / "other/.owner").touch()
    (place / "distgan-abandoned").mkdir()
    (place / "distgan-abandoned/.owner").touch()
    assert remove_abandoned() == [place / "distgan-abandoned"]
    assert sorted(p.name for p in place.iterdir()) == [
        "distgan-file", "distgan-link", "distgan-other", "other",
    ]  # fmt: skip
    assert (target / ".owner").exists()


def test_a_child_that_inherits_nothing_does_not_keep_a_folder(place: Path) -> None:
    folder = TemporaryFolder()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        folder.remove()
        again = TemporaryFolder()
        again._owner.close()  # as when this process ends
        assert remove_abandoned() == [again.path]
        child.kill()
