"""Object storage through fsspec: every call is retried, checked, and fails with a clear error.

Reads come back whole or not at all. What was read is vouched for by the caller's digest or by the
object's MD5; bytes that are wrong are read again until they come right or come twice the same, so
that damage on the wire passes and damage at rest is told at once.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distgan.config import StorageConfig
from distgan.errors import TooLargeError, UserError
from distgan.multipart import upload_in_parts
from distgan.retries import Retrier, in_parallel
from distgan.storage_errors import EXPIRED_CODES, PassingError, code_of, final_error

S3_SCHEMES = ("s3", "s3a")
EXPECTED_BYTES_PER_S = 1e6
"""A first attempt slower than this is taken for a stall; each further one gets twice the time."""

T = TypeVar("T")
IsRight = Callable[[bytes], bool]


@dataclass(frozen=True)
class Facts:
    """What a server says about an object."""

    size: int
    is_folder: bool
    md5: str
    """Hex digest; empty if the server's tag is none. Encrypted objects have tags that look like one
    and are not."""


class ObjectStore:
    """All of one scheme, such as s3://. Not for use in a process forked from this one."""

    def __init__(self, scheme: str, config: StorageConfig) -> None:
        self.scheme, self.config = scheme, config
        self.is_s3 = scheme in S3_SCHEMES
        self.endpoint = config.endpoint_url or ("its endpoint" if self.is_s3 else f"{scheme}://")
        self.part_bytes = int(config.part_megabytes * 1e6)
        self._fs: Any = None

    def facts(self, url: str, retrier: Retrier | None = None) -> Facts:
        """Raises FileNotFoundError if there is neither an object nor a folder."""

        def attempt(fs: Any, timeout: dict[str, float]) -> Facts:
            try:
                info = fs.info(url, **timeout)
            except OSError as error:
                if code_of(error) in ("400", "403"):
                    fs.ls(url, **timeout)  # the answer to a HEAD cannot say why, this one's can
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

    def read(self, url: str, is_right: IsRight | None = None) -> bytes:
        """The whole object; if it came twice the same, also if `is_right` says no."""
        before = b""

        def attempt(number: int) -> bytes:
            nonlocal before
            facts = self.facts(url)
            if facts.is_folder:
                raise IsADirectoryError(url)
            data = self.read_range(url, 0, facts.size) if facts.size else b""
            right = is_right(data) if is_right else bool(facts.md5) and _md5(data) == facts.md5
            if right and len(data) == facts.size:
                return data
            digest = hashlib.sha256(data).digest()
            if digest == before and len(data) == facts.size:
                return data
            before = digest
            raise PassingError("its bytes are not those that were written")

        return self._retry("read", url, attempt)

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer only where the object ends."""
        step = self.part_bytes
        pieces = [(at, min(step, start + length - at)) for at in range(start, start + length, step)]
        limit, budget_s = self.config.max_concurrency, self.config.retry_seconds

        def read_piece(piece: tuple[int, int], retrier: Retrier) -> bytes:
            return self._read_piece(url, *piece, retrier)

        return b"".join(in_parallel(read_piece, pieces, limit=limit, budget_s=budget_s))

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
        self._call(
            "write", url, lambda fs, timeout: fs.pipe_file(url, data, **check, **timeout), len(data)
        )

    def names(self, url: str) -> list[str]:
        """Sorted names directly below; empty if there are none."""

        def attempt(fs: Any, timeout: dict[str, float]) -> list[str]:
            own = _key(url)
            paths = [_key(entry["name"]) for entry in fs.ls(url, detail=True, **timeout)]
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
        def attempt(fs: Any, timeout: dict[str, float]) -> dict[str, dict[str, Any]]:
            own = _key(url) + "/"
            found = fs.find(url, detail=True, **timeout)
            infos = sorted(((_key(n), info) for n, info in found.items()), key=lambda pair: pair[0])
            return {n.removeprefix(own): info for n, info in infos if n.startswith(own)}

        try:
            return self._call("list", url, attempt)
        except FileNotFoundError:
            return {}

    def remove(self, url: str, retrier: Retrier | None = None) -> None:
        """Removes one object; object stores do not say whether there was one."""
        number = -1

        def attempt(fs: Any, timeout: dict[str, float]) -> None:
            nonlocal number
            number += 1
            try:
                fs.rm_file(url, **timeout)
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
        self._call("write", new_url, lambda fs, timeout: fs.cp_file(url, new_url, **timeout))

    def s3_call(
        self, method: str, url: str, *, size: int = 0, retrier: Retrier | None = None, **values: Any
    ) -> dict[str, Any]:
        """One request of S3's own API on the object at `url`."""
        bucket, _, key = _key(url).partition("/")

        def attempt(fs: Any, timeout: dict[str, float]) -> dict[str, Any]:
            return fs.call_s3(method, Bucket=bucket, Key=key, **values, **timeout)

        return self._call("write", url, attempt, size, retrier)

    def _read_piece(self, url: str, start: int, length: int, retrier: Retrier) -> bytes:
        def attempt(fs: Any, timeout: dict[str, float]) -> bytes:
            data: bytes = fs.cat_file(url, start=start, end=start + length, **timeout)
            if len(data) == length:
                return data
            size = self.facts(url, retrier).size
            if len(data) == max(0, size - start) < length:
                return data
            raise PassingError(f"{len(data)} bytes came instead of {length}")

        try:
            return self._call("read", url, attempt, length, retrier)
        except UserError as error:
            if code_of(error.__cause__ or error) in ("InvalidRange", "416"):
                return b""  # starts after the end, as a local file's empty read
            raise

    def _call(
        self,
        action: str,
        url: str,
        attempt: Callable[[Any, dict[str, float]], T],
        size: int = 0,
        retrier: Retrier | None = None,
    ) -> T:
        """Retries an attempt, each with a limit of time that fits the bytes it moves."""

        def numbered(number: int) -> T:
            fs = self._connected()
            patience = self.config.connect_timeout_seconds + self.config.read_timeout_seconds
            limit_s = patience + size / EXPECTED_BYTES_PER_S * 2.0 ** min(number, 10)
            # The HTTP client's own timeouts do not watch an upload that nobody reads.
            return attempt(fs, {"timeout": limit_s} if fs.async_impl else {})

        return self._retry(action, url, numbered, retrier)

    def _retry(
        self, action: str, url: str, attempt: Callable[[int], T], retrier: Retrier | None = None
    ) -> T:
        def judge(error: Exception) -> Exception | None:
            if code_of(error) in EXPIRED_CODES:
                self._fs = None  # a new session reads the credentials anew
            return final_error(error, url, action, self.endpoint)

        retrier = retrier or Retrier(self.config.retry_seconds)
        return retrier.run(attempt, f"{action} {url}", judge)

    def _connected(self) -> Any:
        if self._fs is None:
            self._fs = _file_system(self.scheme, self.config if self.is_s3 else None)
        return self._fs


def _file_system(scheme: str, config: StorageConfig | None) -> Any:
    import fsspec  # takes 0.3 s with its driver: only where there are URLs

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    try:
        fs = fsspec.filesystem(scheme, **options, **(_s3_options(config) if config else {}))
    except ValueError as error:
        raise UserError(f"no storage is known by {scheme}://; use a local path or s3://") from error
    except ImportError as error:
        raise UserError(f"{scheme}:// needs a package that is not here: {error}") from error
    if config:
        fs.retries = 1  # its own have fixed delays and give up in seconds; ours are outside
    return fs


def _s3_options(config: StorageConfig) -> dict[str, Any]:
    return {
        "endpoint_url": config.endpoint_url or None,
        "client_kwargs": {"region_name": config.region} if config.region else {},
        "config_kwargs": {
            "connect_timeout": config.connect_timeout_seconds,
            "read_timeout": config.read_timeout_seconds,
            "max_pool_connections": 2 * config.max_concurrency,
            "request_checksum_calculation": config.checksums,
            "response_checksum_validation": config.checksums,
            "retries": {"total_max_attempts": 1},
            "s3": {"addressing_style": config.addressing},
        },
    }


def _refuse_more(size: int, max_bytes: int | None, url: str) -> None:
    if max_bytes is not None and size > max_bytes:
        raise TooLargeError(f"{url} has more than {max_bytes} bytes")


def _key(url: str) -> str:
    """Without scheme and closing slashes: bucket/key."""
    return url.partition("://")[2].strip("/") if "://" in url else url.strip("/")


def _md5_raw(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _md5(data: bytes) -> str:
    return _md5_raw(data).hex()
