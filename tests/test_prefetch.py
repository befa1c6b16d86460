"""Shards are read ahead in the order of need, a few at a time, and nothing is read for nothing."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distgan.data.manifest import Manifest
from distgan.data.order import EpochOrder, Visit
from distgan.data.prefetch import ShardPrefetcher
from distgan.data.shard_reader import Shard, read_shard
from distgan.errors import StorageError
from tests.numbered_clips import make_data, open_stream


class Source:
    """Reads shards when it is told to, and knows how many are read at a time."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.most_at_a_time = self._now = 0
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def read(self, index: int) -> Shard:
        with self._lock:
            self.started.append(index)
            self._now += 1
            self.most_at_a_time = max(self.most_at_a_time, self._now)
        assert self.gate.wait(30)
        with self._lock:
            self._now -= 1
        if index == 13:
            raise StorageError("shard 13 can't be read")
        return Shard((bytes([index]),), (None,), None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    yield source
    source.gate.set()


def visits(*shards: int) -> Iterator[Visit]:
    """Each at the position of its place, and then 99 for ever."""
    return (
        Visit(position, shard)
        for position, shard in enumerate(itertools.chain(shards, itertools.repeat(99)))
    )


def test_as_many_as_allowed_are_in_flight_and_no_more(source: Source) -> None:
    source.gate.clear()
    ahead = ShardPrefetcher(source.read, visits(*range(10)), lambda shard: False, 3)
    ahead.look_ahead(10)
    wait_until(lambda: len(source.started) == 3)
    source.gate.set()
    for index in range(10):
        assert ahead.take(index).clips == (bytes([index]),)
        ahead.look_ahead()
    assert sorted(source.started) == list(range(10)) and source.most_at_a_time == 3
    ahead.close()


def test_nothing_past_the_limit_is_read(source: Source) -> None:
    ahead = ShardPrefetcher(source.read, visits(5, 6, 7, 8), lambda shard: False, 4)
    ahead.look_ahead(2)
    wait_until(lambda: len(source.started) == 2)
    ahead.look_ahead()
    time.sleep(0.05)
    assert sorted(source.started) == [5, 6]
    ahead.close()


def test_what_is_held_or_on_its_way_is_not_read_again(source: Source) -> None:
    ahead = ShardPrefetcher(source.read, visits(1, 2, 2, 1, 3, 4), lambda shard: shard == 3, 6)
    ahead.look_ahead(6)
    for index in (1, 2, 4):
        ahead.take(index)
    assert sorted(source.started) == [1, 2, 4]
    ahead.close()


def test_a_shard_that_a_later_visit_counts_on_is_kept(source: Source) -> None:
    held: set[int] = set()
    ahead = ShardPrefetcher(source.read, visits(1, 2, 3, 1, 2), held.__contains__, 3)
    ahead.look_ahead(1)
    shard = ahead.take(1)
    held.add(1)
    ahead.look_ahead(5)  # passes the second visits of 1, which is held, and of 2, on its way
    second = ahead.take(2)
    held.remove(1)
    ahead.keep(1, shard)
    assert ahead.take(1) is shard
    ahead.look_ahead(passed=5)
    ahead.keep(2, second)  # its last visit is over
    assert ahead.take(2) is not second and source.started.count(1) == 1
    ahead.close()


def test_no_shard_is_read_twice_or_waited_for_unforeseen_in_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few small shards, so that those of the next epoch are still there when they come up."""
    stream = open_stream(make_data(tmp_path, [4] * 8), lanes=1)
    reads: list[tuple[int, str]] = []

    def read(folder: str, manifest: Manifest, index: int, cache: None) -> Shard:
        reads.append((index, threading.current_thread().name))
        return read_shard(folder, manifest, index, cache)

    monkeypatch.setattr("distgan.data.clip_reader.read_shard", read)
    batches = stream.batches()
    for _ in itertools.islice(batches, 8 * 6):
        pass
    batches.close()
    assert [index for index, thread in reads if not thread.startswith("shard-")] == []
    assert len(reads) <= 8 * 6 + 4, "and as many as are in flight"


def test_a_shard_that_nobody_foresaw_is_read_at_once(source: Source) -> None:
    ahead = ShardPrefetcher(source.read, visits(1), lambda shard: False, 1)
    assert ahead.take(7).clips == (bytes([7]),)
    ahead.close()


def test_an_error_comes_where_the_shard_is_taken(source: Source) -> None:
    ahead = ShardPrefetcher(source.read, visits(12, 13), lambda shard: False, 2)
    ahead.look_ahead(2)
    ahead.take(12)
    with pytest.raises(StorageError, match="shard 13"):
        ahead.take(13)
    ahead.close()


def test_it_closes_once_the_reads_under_way_have_ended(source: Source) -> None:
    before = set(threading.enumerate())
    source.gate.clear()
    ahead = ShardPrefetcher(source.read, visits(1, 2, 3, 4), lambda shard: False, 4)
    ahead.look_ahead(2)
    wait_until(lambda: len(source.started) == 2)
    threading.Timer(0.1, source.gate.set).start()
    ahead.close()
    assert set(threading.enumerate()) <= before | {threading.current_thread()}
    assert sorted(source.started) == [1, 2]


@pytest.mark.parametrize(
    ("sizes", "lanes", "own"),
    [([5, 3, 8, 2], 3, (0, 1, 2)), ([4] * 30, 8, (1, 5)), ([3], 8, (0, 7)), ([9], 1, (0,))],
    ids=str,
)
@pytest.mark.parametrize("start", [0, 7, 40])
def test_the_visits_foresee_every_shard_that_lanes_come_to(
    sizes: list[int], lanes: int, own: tuple[int, ...], start: int
) -> None:
    """The closed form against the order itself, sample by sample, over several epochs."""
    order, expected = EpochOrder(sizes, seed=1, lanes=lanes), []
    last: dict[int, tuple[int, int]] = {}
    end = start + 3 * sum(sizes) + 5 * lanes
    for position in range(start, end):
        epoch, (shard, _) = order.sample(position)
        lane = position % lanes
        if lane in own and last.get(lane) != (epoch, shard):
            last[lane] = (epoch, shard)
            expected.append(Visit(position, shard))
    found = itertools.takewhile(lambda visit: visit.position < end, order.visits(start, own))
    assert list(found) == expected
