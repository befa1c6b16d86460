"""Reads the shards that will be needed next in background threads, a few at a time."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from distgan.data.order import Visit
from distgan.data.shard_reader import Shard


class ShardPrefetcher:
    """Keeps the next few shards in flight; memory is bounded by their number, and by that of the
    shards which the reader holds.

    A shard that its reader still has when a lane's next visit comes up is not read for that visit;
    so when the reader lets it go before, it must hand it back: see `keep`.

    Close it: the interpreter must not end under threads that are inside C code.

    Args:
        read: reads one shard; called in threads.
        visits: the shards in the order of need, without end.
        is_held: whether a shard need not be read, as its reader has it.
        in_flight: how many are read, or wait to be taken, at a time.
    """

    def __init__(
        self,
        read: Callable[[int], Shard],
        visits: Iterator[Visit],
        is_held: Callable[[int], bool],
        in_flight: int,
    ) -> None:
        self._read, self._is_held, self._in_flight = read, is_held, in_flight
        self._visits = visits
        self._next = next(visits)
        self._limit = self._next.position
        self._passed = self._limit
        self._pending: dict[int, Future[Shard]] = {}
        self._counted_on: dict[int, int] = {}
        """Positions of visits for which nothing was read, as the shard was there or on its way."""
        self._jobs: SimpleQueue[tuple[int, Future[Shard]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"shard-{number}", daemon=True)
            for number in range(in_flight)
        ]
        for thread in self._threads:
            thread.start()

    def look_ahead(self, limit: int | None = None, *, passed: int = 0) -> None:
        """Starts reads until enough are in flight, of shards that are needed before a position.

        Args:
            limit: that position; None leaves it where it is.
            passed: all samples before this position have been delivered.
        """
        self._limit = self._limit if limit is None else limit
        self._passed = max(self._passed, passed)
        while len(self._pending) < self._in_flight and self._next.position < self._limit:
            shard = self._next.shard
            if shard in self._pending or self._is_held(shard):
                self._counted_on[shard] = self._next.position
            else:
                future = self._pending[shard] = Future()
                self._jobs.put((shard, future))
            self._next = next(self._visits)

    def take(self, shard: int) -> Shard:
        """The shard, as soon as it is there; read here and now if nobody has begun to.

        Raises:
            UserError, StorageError: as `read` does.
        """
        future = self._pending.pop(shard, None)
        return self._read(shard) if future is None else future.result()

    def keep(self, shard: int, contents: Shard) -> None:
        """Takes back what its reader lets go, if one of the visits to come counted on it."""
        if self._counted_on.get(shard, -1) >= self._passed:
            future = self._pending[shard] = Future()
            future.set_result(contents)

    def close(self) -> None:
        """Starts no further reads, and waits for those under way."""
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            shard, future = job
            try:
                future.set_result(self._read(shard))
            except BaseException as error:  # noqa: BLE001 - raised again where it is taken
                future.set_exception(error)
