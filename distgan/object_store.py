"""Object storage through fsspec: every call is retried, checked, and fails with a clear error.

Reads come back whole or not at all. What was read is vouched for by the caller's digest or by the
object's MD5; bytes that are wrong are read again until they come right or come twice the same, so
that damage on the wire passes and damage at rest is told at once. A read that takes far longer than
others is asked for a second time; see `hedging`.
"""

import base64
import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distgan import drivers
from distgan.buffers import Bytes, copy_into, is_part_of, new_buffer
from distgan.config import StorageConfig
from distgan.drivers import key_of
from distgan.errors import TooLargeError, UserError
from distgan.hedging import Hedging
from distgan.multipart import upload_in_parts
from distgan.retries import Retrier, in_parallel
from distgan.storage_errors import EXPIRED_CODES, PassingError, code_of, final_error

EXPECTED_BYTES_PER_S = 1e6
"""A first attempt slower than this is taken for a stall; each further one gets twice the time."""

T = TypeVar("T")
IsRight = Callable[[Bytes], bool]
Ask = Callable[..., Any]
"""Calls a method of the driver by its name, such as ask("info", url): one request, more or less."""


@dataclass(frozen=True)
class Facts:
    """What a server says about an object."""

    size: int
    is_folder: bool
    md5: str
    """Hex digest; empty if the server's tag is none. Encrypted objects have tags that look like one
    and are not."""


class ObjectStore:
    """All of one scheme, such as s3://. Not for use in a process forked from this one.

    Args:
        slots: one for each request that may be under way; the stores of a process share them.
    """

    def __init__(
        self, scheme: str, config: StorageConfig, slots: threading.Semaphore | None = None
    ) -> None:
        self.scheme, self.config = scheme, config
        self.hedging = Hedging()
        self._slots = slots or threading.Semaphore(config.max_concurrency)
        self.is_s3 = scheme in drivers.S3_SCHEMES
        self.endpoint = config.endpoint_url or ("its endpoint" if self.is_s3 else f"{scheme}://")
        self.part_bytes = int(config.part_megabytes * 1e6)
        self._driver: drivers.Driver | None = None

    def facts(self, url: str, retrier: Retrier | None = None) -> Facts:
        """Raises FileNotFoundError if there is neither an object nor a folder."""

        def attempt(ask: Ask) -> Facts:
            try:
                info = ask("info", url)
            except OSError as error:
                if code_of(error) in ("400", "403"):
                    ask("ls", url)  # the answer to a HEAD cannot say why, this one's can
                raise
            tag = str(info.get("ETag", "")).strip('"').lower()
            is_md5 = re.fullmatch("[0-9a-f]{32}", tag) is not None
            is_folder = info["type"] == "directory"
            return Facts(int(info.get("size") or 0), is_folder, tag if is_md5 else "")

        try:
            return self._call("read", url, attempt, retrier=retrier)
        except FileNotFoundError as error:
            if self.is_s3 and "/" not in url.partition("://")[2].strip("/"):
                raise UserError(f"there is no bucket {url} at {self.endpoint}") from error
            raise

    def read(
        self,
        url: str,
        is_right: IsRight | None = None,
        size: int = 0,
        max_bytes: int | None = None,
    ) -> Bytes:
        """The whole object; if it came twice the same, also if `is_right` says no.

        Args:
            size: its bytes if the caller knows them, to whom `is_right` matters: saves a request.

        Raises:
            TooLargeError: it has more than `max_bytes`; none of them is read.
        """
        before, expected = b"", size if is_right else 0

        def attempt(number: int) -> Bytes:
            nonlocal before, expected
            facts = None if expected else self.facts(url)
            if facts and facts.is_folder:
                raise IsADirectoryError(url)
            length = facts.size if facts else expected
            _refuse_more(length, max_bytes, url)
            data = self._read_whole(url, length)
            right = is_right(data) if is_right else bool(facts and _md5(data) == facts.md5)
            if right and len(data) == length:
                return data
            digest = hashlib.sha256(data).digest()
            if digest == before and len(data) == length:
                return data
            before, expected = digest, expected if len(data) == length else 0
            raise PassingError("its bytes are not those that were written")

        return self._retry("read", url, attempt)

    def read_range(self, url: str, start: int, length: int) -> Bytes:
        """`length` bytes from `start`, fewer only where the object ends."""
        return self._read_pieces(url, start, start + length, None)

    def _read_whole(self, url: str, size: int) -> Bytes:
        """The object, if it has this size; else what it has, and at most a byte more."""
        return self._read_pieces(url, 0, size, size)

    def _read_pieces(self, url: str, start: int, end: int, size: int | None) -> Bytes:
        """The bytes from `start` to `end`; of an object of this `size`, if that is known."""
        if start >= end:
            return b""
        step = self.part_bytes
        pieces = [(at, min(at + step, end)) for at in range(start, end, step)]
        if size is not None:
            pieces[-1] = (pieces[-1][0], end + 1)  # comes back if the object is longer than that
        limit, budget_s = self.config.max_concurrency, self.config.retry_seconds
        whole = new_buffer(end + 1 - start) if len(pieces) > 1 else memoryview(b"")

        def read_piece(piece: tuple[int, int], retrier: Retrier) -> Bytes:
            place = whole[piece[0] - start : piece[1] - start] if len(pieces) > 1 else None
            data = self._read_piece(url, *piece, size, retrier, place)
            if place is not None and not is_part_of(data, whole):
                copy_into(place, 0, data)
            return data

        read = in_parallel(read_piece, pieces, limit=limit, budget_s=budget_s)
        return whole[: sum(map(len, read))] if len(pieces) > 1 else read[0]

    def fetch(self, url: str, path: Path, max_bytes: int | None = None) -> None:
        """Copies an object into a local file, a few parts at a time.

        An MD5 that does not fit has it fetched again, until it fits or comes twice the same.
        """
        before = ""

        def attempt(number: int) -> None:
            nonlocal before
            facts = self.facts(url)
            window = self.part_bytes * self.config.max_concurrency
            md5, size = hashlib.md5(usedforsecurity=False), 0
            _refuse_more(facts.size, max_bytes, url)
            with path.open("wb") as file:
                for start in range(0, facts.size, window):
                    data = self.read_range(url, start, min(window, facts.size - start))
                    _refuse_more(size + len(data), max_bytes, url)
                    md5.update(data)
                    size += file.write(data)
            digest = md5.hexdigest()
            if size == facts.size and digest in (facts.md5 or digest, before):
                return
            before = digest
            raise PassingError("its bytes are not those that were written")

        self._retry("read", url, attempt)

    def write(self, url: str, data: bytes) -> None:
        """Writes the whole object; readers see the old one until then, or none."""
        if self.is_s3 and len(data) > self.part_bytes:
            upload_in_parts(self, url, data)
            return
        # The server refuses what was damaged on its way.
        check = {"ContentMD5": base64.b64encode(_md5_raw(data)).decode()} if self.is_s3 else {}
        self._call("write", url, lambda ask: ask("pipe_file", url, data, **check), len(data))

    def names(self, url: str) -> list[str]:
        """Sorted names directly below; empty if there are none."""

        def attempt(ask: Ask) -> list[str]:
            own = key_of(url)
            paths = [key_of(entry["name"]) for entry in ask("ls", url, detail=True)]
            # An object of that very name, or a folder's own marker, is not below it.
            return sorted({path.rpartition("/")[2] for path in paths if path != own})

        try:
            return self._call("list", url, attempt)
        except FileNotFoundError:
            return []

    def tree(self, url: str) -> dict[str, int]:
        """All objects below, at any depth: path relative to `url` -> bytes, sorted by path."""
        return {name: int(info["size"]) for name, info in self._find(url).items()}

    def stamps(self, url: str) -> dict[str, str]:
        """All objects below: path -> what tells one version of an object from the next."""
        keys = ("size", "ETag", "LastModified", "mtime", "updated")
        return {
            name: " ".join(str(info[key]) for key in keys if key in info)
            for name, info in self._find(url).items()
        }

    def _find(self, url: str) -> dict[str, dict[str, Any]]:
        def attempt(ask: Ask) -> dict[str, dict[str, Any]]:
            own = key_of(url) + "/"
            found = ask("find", url, detail=True)
            infos = sorted(
                ((key_of(n), info) for n, info in found.items()), key=lambda pair: pair[0]
            )
            return {n.removeprefix(own): info for n, info in infos if n.startswith(own)}

        try:
            return self._call("list", url, attempt)
        except FileNotFoundError:
            return {}

    def remove(self, url: str, retrier: Retrier | None = None) -> None:
        """Removes one object; object stores do not say whether there was one."""
        number = -1

        def attempt(ask: Ask) -> None:
            nonlocal number
            number += 1
            try:
                ask("rm_file", url)
            except FileNotFoundError:
                if number == 0:
                    raise  # else an earlier attempt did it, and its answer was lost

        self._call("remove", url, attempt, retrier=retrier)

    def remove_tree(self, url: str) -> None:
        """Removes all objects below; one by one, as bulk requests hide what they left behind."""
        urls = [f"{url.rstrip('/')}/{name}" for name in self.tree(url)]
        limit, budget_s = self.config.max_concurrency, self.config.retry_seconds
        in_parallel(self.remove, urls, limit=limit, budget_s=budget_s)

    def copy(self, url: str, new_url: str) -> None:
        """Copies an object within the store, without its bytes coming here."""
        self._call("write", new_url, lambda ask: ask("cp_file", url, new_url))

    def s3_call(
        self, method: str, url: str, *, size: int = 0, retrier: Retrier | None = None, **values: Any
    ) -> dict[str, Any]:
        """One request of S3's own API on the object at `url`."""
        bucket, _, key = key_of(url).partition("/")

        def attempt(ask: Ask) -> dict[str, Any]:
            return ask("call_s3", method, Bucket=bucket, Key=key, **values)

        return self._call("write", url, attempt, size, retrier)

    def _read_piece(
        self,
        url: str,
        start: int,
        end: int,
        size: int | None,
        retrier: Retrier,
        into: memoryview | None,
    ) -> Bytes:
        def attempt(ask: Ask) -> Bytes:
            data: Bytes = ask("cat_file", url, start=start, end=end, into=into)
            if len(data) == end - start or (size is not None and len(data) == size - start):
                return data
            true_size = self.facts(url, retrier).size
            if len(data) == max(0, true_size - start) < end - start:
                return data
            raise PassingError(f"{len(data)} bytes came instead of {end - start}")

        try:
            return self._call("read", url, attempt, end - start, retrier)
        except UserError as error:
            if code_of(error.__cause__ or error) in ("InvalidRange", "416"):
                return b""  # starts after the end, as a local file's empty read
            raise

    def _call(
        self,
        action: str,
        url: str,
        attempt: Callable[[Ask], T],
        size: int = 0,
        retrier: Retrier | None = None,
    ) -> T:
        """Retries an attempt, each request with a limit of time that fits the bytes it moves."""

        def numbered(number: int) -> T:
            driver = self._connected()
            patience = self.config.connect_timeout_seconds + self.config.read_timeout_seconds
            limit_s = patience + size / EXPECTED_BYTES_PER_S * 2.0 ** min(number, 10)
            hedging = self.hedging if action in ("read", "list") else None

            def ask(name: str, *arguments: Any, **values: Any) -> Any:
                request = drivers.Request(driver, name, arguments, values)
                with self._slots:  # not while waiting for another attempt
                    return request.run(limit_s, hedging, size)

            return attempt(ask)

        return self._retry(action, url, numbered, retrier)

    def _retry(
        self, action: str, url: str, attempt: Callable[[int], T], retrier: Retrier | None = None
    ) -> T:
        def judge(error: Exception) -> Exception | None:
            if code_of(error) in EXPIRED_CODES:
                self._driver = None  # a new session reads the credentials anew
            return final_error(error, url, action, self.endpoint)

        retrier = retrier or Retrier(self.config.retry_seconds)
        return retrier.run(attempt, f"{action} {url}", judge)

    def file_system(self) -> Any:
        """fsspec's, without the retries of this class."""
        return self._connected().fs

    def _connected(self) -> drivers.Driver:
        if self._driver is None:
            self._driver = drivers.connect(self.scheme, self.config if self.is_s3 else None)
        return self._driver


def _refuse_more(size: int, max_bytes: int | None, url: str) -> None:
    if max_bytes is not None and size > max_bytes:
        raise TooLargeError(f"{url} has {size} bytes, more than the {max_bytes} it may have")


def _md5_raw(data: Bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _md5(data: Bytes) -> str:
    return _md5_raw(data).hex()
