"""The reader of S3 objects: what it is given up on stays as it is, and wrong lengths are found."""

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from distgan.range_reader import RangeReader
from distgan.storage_errors import PassingError


class Server:
    """Stands for botocore's client: its bodies bring these chunks, each when it is let go on."""

    def __init__(self, *chunks: bytes, waits: bool = False) -> None:
        self.chunks, self.closed = list(chunks), threading.Event()
        self.asked, self.go_on = threading.Event(), threading.Event()
        if not waits:
            self.go_on.set()

    def get_object(self, **_: Any) -> dict[str, Any]:
        return {"Body": self}

    def read(self, size: int) -> bytes:
        self.asked.set()
        assert self.go_on.wait(10)
        return self.chunks.pop(0) if self.chunks else b""

    def close(self) -> None:
        self.closed.set()


def reader_of(server: Server) -> RangeReader:
    reader = RangeReader({}, {})
    reader._client = server
    return reader


def test_a_range_comes_into_the_memory_that_is_given() -> None:
    memory = memoryview(bytearray(10))
    got = asyncio.run(reader_of(Server(b"0123", b"45")).read("bucket", "key", 100, 108, memory))
    assert got == b"012345" and bytes(memory) == b"012345\0\0\0\0"


def test_more_bytes_than_asked_for_are_refused_and_not_written() -> None:
    memory = memoryview(bytearray(10))
    server = Server(b"0123", b"45678")
    with pytest.raises(PassingError, match="more bytes"):
        asyncio.run(reader_of(server).read("bucket", "key", 0, 8, memory))
    assert bytes(memory) == b"0123" + bytes(6) and server.closed.is_set()


def test_what_comes_after_giving_up_is_written_nowhere() -> None:
    """The memory may be another request's by then."""
    memory, server = memoryview(bytearray(8)), Server(b"late", b"late", waits=True)

    async def give_up() -> None:
        task = asyncio.ensure_future(reader_of(server).read("bucket", "key", 0, 8, memory))
        await asyncio.to_thread(server.asked.wait, 10)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    server.go_on.set()
    assert server.closed.wait(10) and bytes(memory) == bytes(8)
    assert server.chunks == [b"late"], "it read on although nobody waits for it"
