"""Reading ranges of S3 objects at a low price in CPU time: botocore's own client, in threads.

s3fs hands bodies through asyncio and several layers of Python, in pieces of what a socket holds at
the moment: about 2 CPU seconds a gigabyte, ten times what the sockets themselves cost. Signing,
credentials, proxies, TLS and errors are botocore's either way (`python -m benchmarks
object_reading`).
"""

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from distgan.storage_errors import PassingError

_CHUNK = 1 << 18  # stays in the core's cache on its way from the socket to the memory


class RangeReader:
    """Of one S3 server, for all threads of a process.

    Args:
        client_options: of botocore's client.
        config_options: of botocore's `Config`.
    """

    def __init__(
        self, client_options: Mapping[str, Any], config_options: Mapping[str, Any]
    ) -> None:
        self._client_options, self._config_options = client_options, config_options
        self._client: Any = None
        self._lock = threading.Lock()

    async def read(
        self, bucket: str, key: str, start: int, end: int, into: memoryview
    ) -> memoryview:
        """The bytes from `start` to `end`, fewer where the object ends: the beginning of `into`.

        Cancel it to give it up; from then on nothing is written there any more.

        Raises:
            Exception: of botocore, as s3fs raises them too.
            PassingError: the answer's length is not what was asked for.
        """
        target = _Target(into[: end - start])
        work = functools.partial(self._read, bucket, key, f"bytes={start}-{end - 1}", target)
        try:
            await _in_thread(work)
        finally:
            target.close()
        return into[: target.filled]

    def _read(self, bucket: str, key: str, range_: str, target: "_Target") -> None:
        answer = self._connected().get_object(Bucket=bucket, Key=key, Range=range_)
        body = answer["Body"]
        try:
            # Its end tells whether the body has the announced length: asked for once more than
            # there are bytes.
            while target.take(body.read(_CHUNK)):
                pass
        finally:
            body.close()  # the connection serves the next request, if all has been read

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                from botocore.config import Config
                from botocore.session import Session

                session = Session()
                session.register_component("data_loader", _descriptions())
                self._client = session.create_client(
                    "s3", config=Config(**self._config_options), **self._client_options
                )
            return self._client


@functools.cache
def _descriptions() -> Any:
    """Botocore's own of the services; reading them takes longer than all else about a client."""
    from botocore.loaders import create_loader

    return create_loader()


class _Target:
    """Memory that one request fills, until it is closed."""

    def __init__(self, memory: memoryview) -> None:
        self._memory: memoryview | None = memory
        self.filled = 0
        self._lock = threading.Lock()

    def take(self, chunk: bytes) -> bool:
        """Appends what came; whether to go on."""
        with self._lock:
            if self._memory is None or not chunk:
                return False
            if self.filled + len(chunk) > len(self._memory):
                raise PassingError("more bytes came than were asked for")
            self._memory[self.filled : self.filled + len(chunk)] = chunk
            self.filled += len(chunk)
            return True

    def close(self) -> None:
        """Takes nothing any more."""
        with self._lock:
            self._memory = None


async def _in_thread(work: Callable[[], None]) -> None:
    """Calls `work` in a thread of its own, and waits for its end.

    If nobody waits any more while it hangs in a socket, it stays there until the client's own
    timeout, and holds up nothing: not the program's end either, which a pool's threads would.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as caught:  # noqa: BLE001 - raised again where it is awaited
            error = caught
        if not done.cancelled():
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="range", daemon=True).start()
    await done
