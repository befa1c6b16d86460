"""The drivers of object storage, by way of fsspec: how they are made and how a request is sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from distgan.buffers import new_buffer
from distgan.config import StorageConfig
from distgan.errors import UserError
from distgan.hedging import Hedging
from distgan.storage_errors import PassingError

S3_SCHEMES = ("s3", "s3a")
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Request:
    """A call of a driver's method."""

    fs: Any
    name: str
    arguments: Sequence[Any]
    values: Mapping[str, Any]

    def run(self, limit_s: float, hedging: Hedging | None, size: int) -> Any:
        """Its answer. The limit of time and the second request are for asynchronous drivers.

        Args:
            limit_s: longest time; an HTTP client's own limits don't watch an upload nobody reads.
            hedging: sends it a second time where it takes long; None for what must come once.
            size: bytes that it moves.
        """
        if not self.fs.async_impl:
            return getattr(self.fs, self.name)(*self.arguments, **self.values)
        from fsspec.asyn import sync

        method = getattr(self.fs, f"_{self.name}")
        if self.name == "cat_file" and hasattr(self.fs, "_call_s3"):
            method = partial(_read_from_s3, self.fs)
        request = partial(method, *self.arguments, **self.values)
        if hedging is None:
            return sync(self.fs.loop, request, timeout=limit_s)
        return sync(self.fs.loop, hedging.first_answer, request, size, timeout=limit_s)


async def _read_from_s3(fs: Any, url: str, *, start: int, end: int) -> memoryview:
    """As `cat_file`, which would copy all bytes once more, into memory of small pages."""
    bucket, _, key = key_of(url).partition("/")
    answer = await fs._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}"
    )
    buffer, filled = new_buffer(end - start), 0
    try:
        while chunk := await answer["Body"].read(_CHUNK):
            if len(chunk) > end - start - filled:
                raise PassingError("more bytes came than were asked for")
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
    finally:
        answer["Body"].close()
    return buffer[:filled]


def connect(scheme: str, config: StorageConfig | None) -> Any:
    """A file system of fsspec; `config` for S3 only.

    Raises:
        UserError: unknown scheme, or its package is not installed.
    """
    import fsspec  # takes 0.3 s with its driver: only where there are URLs

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    try:
        fs = fsspec.filesystem(scheme, **options, **(s3_options(config) if config else {}))
    except ValueError as error:
        raise UserError(f"no storage is known by {scheme}://; use a local path or s3://") from error
    except ImportError as error:
        raise UserError(f"{scheme}:// needs a package that is not here: {error}") from error
    if config:
        fs.retries = 1  # its own have fixed delays and give up in seconds; ours are outside
    return fs


def s3_options(config: StorageConfig) -> dict[str, Any]:
    """What s3fs takes."""
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


def key_of(url: str) -> str:
    """Without scheme and closing slashes: bucket/key."""
    return url.partition("://")[2].strip("/") if "://" in url else url.strip("/")
