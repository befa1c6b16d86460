"""The drivers of object storage, by way of fsspec: how they are made and how a request is sent."""

import itertools
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from distgan.buffers import new_buffer
from distgan.config import StorageConfig
from distgan.errors import UserError
from distgan.hedging import Hedging
from distgan.range_reader import RangeReader

S3_SCHEMES = ("s3", "s3a")


@dataclass(frozen=True)
class Driver:
    """What talks to one kind of object storage."""

    fs: Any
    """fsspec's file system."""
    reader: RangeReader | None
    """Reads the objects themselves; None where `fs` does it."""


@dataclass(frozen=True)
class Request:
    """A call of a driver's method."""

    driver: Driver
    name: str
    arguments: Sequence[Any]
    values: Mapping[str, Any]
    """`into` of `cat_file` is memory that may take the bytes, for drivers that can use it."""

    def run(self, limit_s: float, hedging: Hedging | None, size: int) -> Any:
        """Its answer. The limit of time and the second request are for asynchronous drivers.

        Args:
            limit_s: longest time; an HTTP client's own limits don't watch an upload nobody reads.
            hedging: sends it a second time where it takes long; None for what must come once.
            size: bytes that it moves.
        """
        fs, values = self.driver.fs, dict(self.values)
        into = values.pop("into", None)
        if not fs.async_impl:
            return getattr(fs, self.name)(*self.arguments, **values)
        from fsspec.asyn import sync

        request = partial(getattr(fs, f"_{self.name}"), *self.arguments, **values)
        if self.name == "cat_file" and self.driver.reader is not None:
            request = _range_request(self.driver.reader, *self.arguments, **values, into=into)
        if hedging is None:
            return sync(fs.loop, request, timeout=limit_s)
        return sync(fs.loop, hedging.first_answer, request, size, timeout=limit_s)


def _range_request(
    reader: RangeReader, url: str, *, start: int, end: int, into: memoryview | None
) -> partial[Coroutine[Any, Any, memoryview]]:
    """As s3fs's `cat_file`; a second request beside the first gets memory of its own."""
    bucket, _, key = key_of(url).partition("/")
    memories = itertools.chain([into] if into else [], iter(partial(new_buffer, end - start), None))

    def request() -> Coroutine[Any, Any, memoryview]:
        return reader.read(bucket, key, start, end, next(memories))

    return partial(request)


def connect(scheme: str, config: StorageConfig | None) -> Driver:
    """Ready for requests; `config` for S3 only.

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
    if config is None:
        return Driver(fs, None)
    fs.session = _session()  # no option of it: Ray copies those, and a session can't be copied
    fs.retries = 1  # its own have fixed delays and give up in seconds; ours are outside
    return Driver(fs, _range_reader(config))


def _session() -> Any:
    """A session whose uploads don't ask for a word of the server (`Expect: 100-continue`): aiohttp
    then waits for that word alone and never sees an error that the server answers instead."""
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    session = AioSession()
    session.unregister("before-call.s3", add_expect_header)
    return session


def _range_reader(config: StorageConfig) -> RangeReader:
    options = s3_options(config)
    client = {**options["client_kwargs"], "endpoint_url": options["endpoint_url"]}
    return RangeReader(client, options["config_kwargs"])


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
