"""Temporary folders that do not pile up: what a killed process left, the next one removes.

Each folder is named `distgan-*` and holds a file that its process keeps locked. The system lets go
of the lock when the process is gone, however it ended, so that a folder whose lock is free has no
owner left. Age and process numbers prove nothing (containers share both) and are not looked at.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PREFIX = "distgan-"
_OWNER_NAME = ".owner"


class TemporaryFolder:
    """A new folder of this process among the system's temporary files.

    Args:
        parent: where to make it; empty means where the system keeps temporary files.
    """

    def __init__(self, parent: str = "") -> None:
        remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent or None))
        # Locked before it has its name: a folder whose lock can be seen is never without owner.
        beside = self.path / f"{_OWNER_NAME}.new"
        self._owner: IO[bytes] = beside.open("wb")
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        beside.rename(self.path / _OWNER_NAME)

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._owner.close()


@contextlib.contextmanager
def temporary_folder(parent: str = "") -> Iterator[Path]:
    """A new folder that lasts as long as the context."""
    folder = TemporaryFolder(parent)
    try:
        yield folder.path
    finally:
        folder.remove()


def remove_abandoned(parent: str = "") -> list[Path]:
    """Removes this user's folders whose processes are gone; returns them."""
    removed = []
    for folder in Path(parent or tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another process removes it too, or it isn't ours
            if _is_abandoned(folder):
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def _is_abandoned(folder: Path) -> bool:
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        return False
    with (folder / _OWNER_NAME).open("rb") as owner:  # FileNotFoundError: not one of these
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
