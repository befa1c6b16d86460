"""Reading and writing files by path, so that a reader never sees half of a file.

The only module that knows how bytes become durable; object storage fits behind the same functions.
"""

import os
import shutil
from pathlib import Path


def join(base: str, *parts: str) -> str:
    """A path below `base`."""
    return "/".join([base.rstrip("/") or "/", *parts])


def exists(path: str) -> bool:
    """Whether there is a file or folder."""
    return Path(path).exists()


def list_names(path: str) -> list[str]:
    """Sorted names in a folder; empty if there is no such folder."""
    folder = Path(path)
    return sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []


def read_bytes(path: str) -> bytes:
    """The whole file."""
    return Path(path).read_bytes()


def write_bytes(path: str, data: bytes) -> None:
    """Writes the whole file or, on any failure, nothing: beside, flushed to disk, then renamed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
        _sync_folder(target.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def remove(path: str) -> None:
    """Removes one file."""
    Path(path).unlink()


def remove_tree(path: str) -> None:
    """Removes a folder with all that is in it; no error if there is none."""
    if Path(path).exists():
        shutil.rmtree(path)


def rename(path: str, new_path: str) -> None:
    """Renames a folder; one that is in the way is removed first."""
    remove_tree(new_path)
    Path(path).rename(new_path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
