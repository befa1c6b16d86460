"""Outages of object storage while a stream reads from it: no clip is lost, and the order stays.

One data set, one process: the faults of requests hit all at once, each kind the copy of the data
set that carries its name. Those of connections hit the whole server, one after the other.
"""

import contextlib
import hashlib
import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from distgan import storage
from tests.fault_proxy import CUTS, FaultProxy, Request
from tests.numbered_clips import make_data, open_stream
from tests.object_servers import BUCKET, options_for, rclone_server, with_options
from tests.order_program import lines_of

SHARDS, A_SHARD, BATCH = 60, 4, 8
BATCHES = 2 * SHARDS * A_SHARD // BATCH  # two epochs
KINDS = ("slow_down", "unavailable", "internal", *CUTS)
LENGTHS = [5, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(400)])]


class Outages:
    """Faults for the requests that name a data set, for so many seconds from its start on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started: dict[str, float] = {}
        self.made: dict[str, int] = {}

    def fault(self, number: int, request: Request) -> str:
        kind = request.target.removeprefix(f"/{BUCKET}/").partition("/")[0]
        if kind in self.started and time.monotonic() < self.started[kind] + self.seconds:
            self.made[kind] = self.made.get(kind, 0) + 1
            return kind
        return ""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the server: the same data set under the name of each kind."""
    root = tmp_path_factory.mktemp("rclone")
    make_data(root / BUCKET / "undisturbed", [A_SHARD] * SHARDS)
    for kind in KINDS:
        shutil.copytree(root / BUCKET / "undisturbed", root / BUCKET / kind)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[FaultProxy]:
    """A proxy before rclone's server, and this process's options for it."""
    with (
        rclone_server(root) as port,
        FaultProxy(port) as proxy,
        with_options(
            options_for(proxy.port, retry_seconds=200.0, max_concurrency=64, read_timeout_seconds=2)
        ),
    ):
        yield proxy


def order_hash(data: str, outage: threading.Event, over: threading.Event) -> str:
    """Of two epochs; calls for the outage in the middle of the first one."""
    stream, lines = open_stream(data, batch=BATCH), list[str]()
    with contextlib.closing(stream.batches()) as batches:
        for number, batch in enumerate(itertools.islice(batches, BATCHES)):
            lines += lines_of(batch, number * BATCH)
            if number == BATCHES // 4:
                outage.set()
                assert over.wait(10)
    assert stream.damage.num_shards == 0, "trouble on the way was taken for damage"
    assert len(lines) == 2 * SHARDS * A_SHARD
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> str:
    """The order hash of the same data on a local disk."""
    never, at_once = threading.Event(), threading.Event()
    at_once.set()
    return order_hash(str(root / BUCKET / "undisturbed"), never, at_once)


@pytest.fixture(scope="module", params=LENGTHS)
def faulty(
    server: FaultProxy, request: pytest.FixtureRequest
) -> Iterator[tuple[Outages, dict[str, Future[str]]]]:
    """The order hashes of streams that each meet an outage of one kind."""
    outages = Outages(request.param)

    def read(kind: str) -> str:
        begun = _Begins(outages, kind)
        found = order_hash(f"s3://{BUCKET}/{kind}", begun, begun)
        assert time.monotonic() > outages.started[kind] + outages.seconds, "it was over before"
        return found

    with server.failing(outages.fault), ThreadPoolExecutor(len(KINDS)) as pool:
        yield outages, {kind: pool.submit(read, kind) for kind in KINDS}


class _Begins(threading.Event):
    """Setting it starts the outage of a kind."""

    def __init__(self, outages: Outages, kind: str) -> None:
        super().__init__()
        self._outages, self._kind = outages, kind

    def set(self) -> None:
        self._outages.started[self._kind] = time.monotonic()
        super().set()


@pytest.mark.parametrize("kind", KINDS)
def test_an_outage_of_requests_loses_nothing_and_keeps_the_order(
    faulty: tuple[Outages, dict[str, Future[str]]], kind: str, undisturbed: str
) -> None:
    outages, hashes = faulty
    assert hashes[kind].result() == undisturbed
    assert outages.made[kind] >= 2


@pytest.mark.parametrize("seconds", LENGTHS)
@pytest.mark.parametrize("refusing", [True, False], ids=["refused", "no answer"])
def test_an_outage_of_connections_loses_nothing_and_keeps_the_order(
    server: FaultProxy, refusing: bool, seconds: float, undisturbed: str
) -> None:
    outage, begun = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(order_hash, f"s3://{BUCKET}/undisturbed", outage, begun)
        assert outage.wait(30), found.exception(0)
        with server.out_of_reach(refusing=refusing):
            begun.set()
            with pytest.raises(TimeoutError):
                found.result(seconds)  # without connections it can't go on
        assert found.result() == undisturbed
    assert storage.options().retry_seconds > seconds
