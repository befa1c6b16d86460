"""A request that is not answered is overtaken, and a server that is merely slow is left alone."""

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distgan import hedging, storage
from distgan.errors import StorageError
from distgan.hedging import BURST, SHARE, SHORTEST_WAIT_S, Hedging
from distgan.retries import Retrier
from tests.fault_proxy import FaultProxy, Request
from tests.object_servers import BUCKET, options_for, rclone_server, with_options


class Server:
    """Answers with the request's number after so many seconds; negative ones fail."""

    def __init__(self, *seconds: float, then: float = 0.0) -> None:
        self._seconds = itertools.chain(seconds, itertools.repeat(then))
        self.asked = self.cancelled = 0

    async def answer(self) -> int:
        number, self.asked = self.asked, self.asked + 1
        seconds = next(self._seconds)
        try:
            await asyncio.sleep(abs(seconds))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if seconds < 0:
            raise ConnectionError(f"request {number}")
        return number


async def warmed(server: Server, count: int = 10) -> Hedging:
    """One that knows what is typical."""
    known = Hedging()
    for _ in range(count):
        await known.first_answer(server.answer, 100)
    return known


def test_a_stall_is_overtaken_and_given_up() -> None:
    async def play() -> None:
        server = Server(*[0.0] * 10, 60)
        known, start = await warmed(server), time.monotonic()
        assert await known.first_answer(server.answer, 100) == 11
        assert SHORTEST_WAIT_S <= time.monotonic() - start < SHORTEST_WAIT_S + 2
        assert (known.started, known.won, server.cancelled) == (1, 1, 1)

    asyncio.run(play())


def test_the_first_answer_counts_also_if_it_is_the_first_requests() -> None:
    async def play() -> None:
        server = Server(*[0.0] * 10, SHORTEST_WAIT_S + 0.2, 60)
        known = await warmed(server)
        assert await known.first_answer(server.answer, 100) == 10
        assert (known.started, known.won, server.cancelled) == (1, 0, 1)

    asyncio.run(play())


@pytest.mark.parametrize("first", [60.0, SHORTEST_WAIT_S + 0.2], ids=["second", "first"])
def test_one_of_two_may_fail(first: float) -> None:
    """The second at once, or the first while the second is under way."""

    async def play() -> None:
        seconds = (SHORTEST_WAIT_S + 0.3, -0.01) if first == 60 else (-first, 0.5)
        server = Server(*[0.0] * 10, *seconds)
        known = await warmed(server)
        assert await known.first_answer(server.answer, 100) == (10 if first == 60 else 11)

    asyncio.run(play())


def test_two_failures_are_one() -> None:
    async def play() -> None:
        server = Server(*[0.0] * 10, -SHORTEST_WAIT_S - 0.2, -0.5)
        known = await warmed(server)
        with pytest.raises(ConnectionError):
            await known.first_answer(server.answer, 100)

    asyncio.run(play())


def test_before_it_is_known_what_is_typical_the_wait_is_longer_but_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hedging, "FIRST_WAIT_S", 1.5)

    async def play() -> None:
        server = Server(SHORTEST_WAIT_S + 0.3, 60)
        known = await warmed(server, 1)
        assert known.started == 0
        start = time.monotonic()
        assert await known.first_answer(server.answer, 100) == 2
        assert 1.5 <= time.monotonic() - start < 4 and known.won == 1

    asyncio.run(play())


def test_the_extra_load_on_a_slow_server_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes ten times slower than the limit for everybody, and worse with every request."""
    monkeypatch.setattr(hedging, "SHORTEST_WAIT_S", 0.002)

    async def play() -> None:
        slower = (0.02 * 1.02**n for n in range(80))
        server = Server(*[0.001] * 10, *slower, then=0.1)
        known = await warmed(server)
        monkeypatch.setattr(hedging, "TIMES_TYPICAL", 0.1)  # every request looks late
        requests = 80
        for _ in range(requests):
            await known.first_answer(server.answer, 100)
        assert 1 <= known.started <= BURST + SHARE * (requests + 10)

    asyncio.run(play())


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[FaultProxy]:
    with rclone_server(tmp_path) as port, FaultProxy(port) as proxy:
        yield proxy


def test_a_stalled_read_costs_less_than_its_timeout_and_comes_once(proxy: FaultProxy) -> None:
    """Over real connections, in the middle of an object of several parts."""
    data, stalls = os.urandom(12_000_000), []

    def stall_one(number: int, request: Request) -> str:
        if not request.reads_object or stalls:
            return ""
        stalls.append(number)
        return "stall"

    options = options_for(proxy.port, read_timeout_seconds=30.0, retry_seconds=60.0)
    with with_options(options):
        storage.write_bytes(f"s3://{BUCKET}/x", data)
        for _ in range(4):
            assert storage.read_bytes(f"s3://{BUCKET}/x") == data
        start = time.monotonic()
        with proxy.failing(stall_one):
            assert storage.read_bytes(f"s3://{BUCKET}/x") == data
        assert stalls and storage.second_requests() >= 1
        assert time.monotonic() - start < 15


@pytest.mark.parametrize("limit", [1, 3])
def test_all_reads_of_a_process_share_one_bound(proxy: FaultProxy, limit: int) -> None:
    """Several objects of several parts, by two schemes, read by threads at the same time."""
    lock, now, most = threading.Lock(), 0, 0
    data, right = os.urandom(17_000_000), list[bool]()
    serve = proxy.serve

    def counting(client: object) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1  # before the answer: the client may ask on before its connection ends here
        serve(client)  # type: ignore[arg-type]

    def read(scheme: str) -> None:
        url = f"{scheme}://{BUCKET}/y"
        got = storage.read_large(url, is_right=lambda d: d == data, size=len(data))
        right.append(got == data)

    with with_options(options_for(proxy.port, max_concurrency=limit, read_timeout_seconds=20.0)):
        storage.write_bytes(f"s3://{BUCKET}/y", data)
        proxy.serve = counting  # type: ignore[method-assign, assignment]
        threads = [threading.Thread(target=read, args=(s,)) for s in ("s3", "s3a", "s3", "s3a")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        second_requests = storage.second_requests()
    assert right == [True] * 4
    assert limit <= most <= limit + second_requests


def test_a_known_size_saves_the_question_and_a_wrong_one_is_found(proxy: FaultProxy) -> None:
    with with_options(options_for(proxy.port)):
        storage.write_bytes(f"s3://{BUCKET}/z", b"0123456789")
        before = len(proxy.requests)
        read = storage.read_large(
            f"s3://{BUCKET}/z", is_right=lambda data: data == b"0123456789", size=10
        )
        assert read == b"0123456789" and len(proxy.requests) == before + 1
        for wrong in (9, 11):
            for right in (lambda data: False, lambda data, n=wrong: len(data) == n):
                got = storage.read_large(f"s3://{BUCKET}/z", is_right=right, size=wrong)
                assert got == b"0123456789"


class SlowDownError(Exception):
    """Looks like botocore's."""

    def __init__(self, retry_after: str) -> None:
        super().__init__("slow down")
        self.response = {
            "Error": {"Code": "SlowDown"},
            "ResponseMetadata": {"HTTPHeaders": {"retry-after": retry_after}},
        }


def fail_once(retry_after: str) -> Callable[[int], int]:
    def attempt(number: int) -> int:
        if number == 0:
            raise SlowDownError(retry_after)
        return number

    return attempt


@pytest.mark.parametrize("value", ["1", "date"])
def test_the_server_says_how_long_to_wait(value: str) -> None:
    if value == "date":
        value = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
    start = time.monotonic()
    assert Retrier(30).run(fail_once(value), "read x", lambda error: None) == 1
    assert 0.9 < time.monotonic() - start < 5


@pytest.mark.parametrize("value", ["", "soon", "-5"])
def test_what_it_says_must_make_sense(value: str) -> None:
    start = time.monotonic()
    assert Retrier(30).run(fail_once(value), "read x", lambda error: None) == 1
    assert time.monotonic() - start < 0.5


def test_a_long_wait_ends_with_the_budget() -> None:
    def attempt(number: int) -> int:
        raise SlowDownError("3600")

    start = time.monotonic()
    with pytest.raises(StorageError, match="retry_seconds=1;"):
        Retrier(1).run(attempt, "read x", lambda error: None)
    assert time.monotonic() - start < 3
