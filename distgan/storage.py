"""Reading and writing files by path or URL, so that a reader never sees half of a file.

The only door to files for the rest of the program: a local path (or file:// URL) is meant for this
machine, any other URL for object storage, `s3://bucket/key` above all. `configure` says how to talk
to it, once a process. Common errors, beside those of local files (OSError):

    FileNotFoundError   nothing there, in a bucket that is
    UserError           wrong bucket, bad or no credentials, denied, read-only, unknown scheme
    StorageError        the storage failed for longer than `storage.retry_seconds`
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from distgan import create_once
from distgan.addresses import check_server, check_url
from distgan.buffers import Bytes, new_buffer
from distgan.config import StorageConfig
from distgan.errors import TooLargeError, UserError
from distgan.object_store import IsRight, ObjectStore

MOST_BYTES = 2**30
"""Of a file that is read whole, if its reader does not know better: folders come from elsewhere,
too, and a sparse file may claim any size at no cost."""

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_options = StorageConfig()
_stores: dict[tuple[int, str], ObjectStore] = {}
"""By process and scheme: connections do not survive a fork."""
_slots: dict[int, threading.Semaphore] = {}
"""By process: requests to all stores that may be under way together."""


def configure(options: StorageConfig) -> None:
    """Sets how this process talks to object storage; worker processes are told on their own."""
    global _options
    if options != _options:
        _options = options
        _stores.clear()
        _slots.clear()


def options() -> StorageConfig:
    """What `configure` was given last: hand it to worker processes."""
    return _options


def second_requests() -> int:
    """How often this process has asked twice as an answer took long, since `configure`."""
    return sum(store.hedging.started for store in _stores.values())


def is_local(path: str) -> bool:
    """Whether a path or URL means a file of this machine.

    Raises:
        UserError: a chained URL, such as simplecache::s3://bucket.
    """
    if "::" in path.partition("://")[0] and "://" in path:
        raise UserError(f"{path!r}: chained URLs are not supported; give the plain one")
    match = _URL.match(path)
    return match is None or match[1].lower() == "file"


def local_path(path: str) -> Path:
    """The path of a local file, also from a file:// URL."""
    assert is_local(path), "for local files only"
    if _URL.match(path):
        return Path(unquote(path.partition("://")[2].removeprefix("localhost")))
    return Path(path)


def join(base: str, *parts: str) -> str:
    """A path below `base`."""
    return "/".join([base.rstrip("/") or "/", *parts])


def exists(path: str) -> bool:
    """Whether there is a file or folder; on object storage a folder is there if it holds any."""
    if is_local(path):
        return local_path(path).exists()
    try:
        _store(path).facts(path)
    except FileNotFoundError:
        return False
    return True


def size(path: str) -> int:
    """Bytes of a file."""
    if is_local(path):
        return local_path(path).stat().st_size
    facts = _store(path).facts(path)
    if facts.is_folder:
        raise IsADirectoryError(path)
    return facts.size


def list_names(path: str) -> list[str]:
    """Sorted names in a folder; empty if there is no such folder."""
    if not is_local(path):
        return _store(path).names(path)
    folder = local_path(path)
    return sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []


def list_tree(url: str) -> dict[str, int]:
    """All objects below a URL of object storage: path relative to it -> bytes, sorted."""
    return _store(url).tree(url)


def list_stamps(url: str) -> dict[str, str]:
    """All objects below a URL: path -> a text that is another one once the object changed."""
    return _store(url).stamps(url)


def read_bytes(
    path: str, *, is_right: IsRight | None = None, max_bytes: int | None = MOST_BYTES
) -> bytes:
    """The whole file.

    Args:
        is_right: checks a digest, say. Bytes from object storage that are not right are read again
            until they come right or come twice the same: then they are damaged at rest and are
            returned as they are, so callers still judge them. Without it the object's MD5 judges.

    Raises:
        TooLargeError: it has more than `max_bytes`; none of them is read.
    """
    if not is_local(path):
        return bytes(_store(path).read(path, is_right, max_bytes=max_bytes))
    file = _regular(path)
    _refuse_more(file.stat().st_size, max_bytes, path)
    return file.read_bytes()


def read_large(
    path: str,
    *,
    is_right: IsRight | None = None,
    size: int = 0,
    max_bytes: int | None = MOST_BYTES,
) -> Bytes:
    """As `read_bytes`, without copying what came.

    Args:
        size: the bytes it has if all is well, for callers that know: with `is_right`, an object
            then comes with the first request. One of another size still comes as it is.
    """
    if not is_local(path):
        return _store(path).read(path, is_right, size, max_bytes)
    with _regular(path).open("rb", buffering=0) as file:
        length = os.fstat(file.fileno()).st_size
        _refuse_more(length, max_bytes, path)
        buffer, filled = new_buffer(length), 0
        while count := file.readinto(buffer[filled:]):
            filled += count
    return buffer[:filled]


def read_range(path: str, start: int, length: int) -> bytes:
    """`length` bytes from `start`, fewer only where the file ends; nothing vouches for them."""
    if not is_local(path):
        return bytes(_store(path).read_range(path, start, length))
    with _regular(path).open("rb") as file:
        file.seek(start)
        return file.read(length)


def fetch(url: str, path: Path, *, max_bytes: int | None = None) -> None:
    """Copies an object into a local file, in bounded memory.

    Raises:
        TooLargeError: it has more than `max_bytes`; no more are fetched.
    """
    _store(url).fetch(url, path, max_bytes)


def write_bytes(path: str, data: bytes) -> None:
    """Writes the whole file or, on any failure, nothing.

    Locally: beside, flushed to disk, then renamed. On object storage: in one request, or in parts
    that become an object when the last one has arrived.
    """
    if not is_local(path):
        _store(path).write(path, data)
        return
    target = local_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, path) from error  # a full disk names no file
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def creating(path: str) -> Iterator[Callable[[bytes], None]]:
    """Within, no other writer to object storage creates this (small) file; yields what does.

    Local writers must hold a lock of their own.

    Raises:
        FileExistsError: it is there, or another writer is at it.
    """
    if not is_local(path):
        with create_once.creating(_store(path), path) as create:
            yield create
        return
    if local_path(path).exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    yield partial(write_bytes, path)


def remove(path: str) -> None:
    """Removes one file; only local ones must be there."""
    if is_local(path):
        local_path(path).unlink()
    else:
        _store(path).remove(path)


def remove_tree(path: str) -> None:
    """Removes a folder with all that is in it; no error if there is none."""
    if not is_local(path):
        _store(path).remove_tree(path)
    elif local_path(path).exists():
        shutil.rmtree(local_path(path))


def rename(path: str, new_path: str) -> None:
    """Renames a folder; one that is in the way is removed first.

    Object stores know no folders: each object is copied within the store, then the old ones go.
    Stopped half-way, it leaves the old ones and can be done again.
    """
    remove_tree(new_path)
    if is_local(path):
        local_path(path).rename(local_path(new_path))
        return
    store = _store(path)
    for name in store.tree(path):
        store.copy(join(path, name), join(new_path, name))
    store.remove_tree(path)


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it, for libraries that take one."""
    return _store(url).file_system(), url.partition("://")[2].strip("/")


def _store(url: str) -> ObjectStore:
    scheme = url.partition("://")[0].lower()
    check_url(url)
    check_server(scheme, _options.endpoint_url)
    key = (os.getpid(), scheme)
    if key not in _stores:
        slots = _slots.setdefault(os.getpid(), threading.Semaphore(_options.max_concurrency))
        _stores[key] = ObjectStore(scheme, _options, slots)
    return _stores[key]


def _refuse_more(size: int, max_bytes: int | None, path: str) -> None:
    if max_bytes is not None and size > max_bytes:
        raise TooLargeError(f"{path} has {size} bytes, more than the {max_bytes} it may have")


def _regular(path: str) -> Path:
    """A local file's path. What never ends or answers (a pipe, a device) is no file of ours, and
    might lie in a folder that comes from elsewhere.

    Raises:
        OSError: it is such a thing, or not there.
    """
    found = local_path(path)
    try:
        mode = found.stat().st_mode
    except ValueError as error:  # a zero byte in its name, or half of a character
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of folders, opening tells
        raise OSError(errno.EINVAL, "is no regular file", path)
    return found


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
