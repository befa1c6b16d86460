"""Shards of object storage kept on a local disk, up to a limit, the least recently used leaving.

One folder serves all processes of a machine and any number of data sets: files are named by their
sha256, which is checked on every read.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from distgan import storage
from distgan.buffers import Bytes
from distgan.config import DataConfig
from distgan.errors import TooLargeError

_NAME = "[0-9a-f]" * 64 + ".tar"
"""Only files named like this are ever removed: the folder may hold others."""

_log = logging.getLogger(__name__)


class ShardCache:
    """The folder `data.cache_dir`, of at most `data.cache_gigabytes`."""

    def __init__(self, config: DataConfig) -> None:
        self.folder = Path(config.cache_dir)
        self.limit_bytes = int(config.cache_gigabytes * 1e9)
        self._is_usable = True

    def read(
        self,
        url: str,
        sha256: str,
        is_right: Callable[[Bytes], bool],
        *,
        size: int = 0,
        max_bytes: int = storage.MOST_BYTES,
    ) -> Bytes:
        """The shard's bytes from the cache or, if it isn't there or is damaged there, from `url`,
        where it has this `size`.

        Raises:
            As `storage.read_large`. A cache that can't be used is said once, and done without.
        """
        file = self.folder / f"{sha256}.tar"
        data = self._cached(file, max_bytes)
        if data is not None:
            if is_right(data):
                return data
            _log.warning("the cached shard %s is damaged; reading it anew from %s", file, url)
            file.unlink(missing_ok=True)
        came_right = False

        def judge(data: Bytes) -> bool:
            nonlocal came_right
            came_right = is_right(data)
            return came_right

        data = storage.read_large(url, is_right=judge, size=size, max_bytes=max_bytes)
        if came_right and self._is_usable and len(data) <= self.limit_bytes:
            try:
                self._keep(file, data)
            except OSError as error:
                self._give_up(error)
        return data

    def _cached(self, file: Path, max_bytes: int) -> Bytes | None:
        try:
            data = storage.read_large(str(file), max_bytes=max_bytes)
            os.utime(file)
        except FileNotFoundError:  # not there, or another process has just let it go
            return None
        except TooLargeError:
            return b""  # damaged
        except OSError as error:
            self._give_up(error)
            return None
        return data

    def _give_up(self, error: OSError) -> None:
        if self._is_usable:
            self._is_usable = False
            _log.warning("can't use data.cache_dir=%s (%s); this process goes on without a cache",
                         self.folder, error.strerror or error)  # fmt: skip

    def _keep(self, file: Path, data: Bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._make_room(len(data))
            beside = file.with_name(f".{file.name}.partial")
            try:
                beside.write_bytes(data)
                beside.replace(file)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise

    def _make_room(self, needed_bytes: int) -> None:
        for partial in self.folder.glob(f".{_NAME}.partial"):
            partial.unlink()  # of a process that was killed: nobody else writes now
        found = [(file, file.stat()) for file in self.folder.glob(_NAME)]
        total = sum(facts.st_size for _, facts in found)
        for file, facts in sorted(found, key=lambda pair: pair[1].st_mtime):
            if total + needed_bytes <= self.limit_bytes:
                return
            file.unlink()
            total -= facts.st_size

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, among threads and processes."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
