"""A second request where one takes far longer than its like did lately; the first answer counts.

A request that a server never answers would cost its whole timeout. What comes back is the same
whichever of the two wins, as both ask for the same bytes. Everything here runs in the driver's
event loop, one thread: nothing needs a lock.
"""

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

SHORTEST_WAIT_S = 0.5
"""No request is overtaken before it took this long, however fast the others are ..."""
TIMES_TYPICAL = 2.0
"""... nor before so many times what is typical."""
FIRST_WAIT_S, FIRST_BYTES_PER_S = 2.0, 4e6
"""While little is known, a request may take this long and longer by its bytes: at a start, too, one
that is never answered must not cost its whole timeout."""
SHARE, BURST = 0.05, 4.0
"""Second requests in the long run, as a share of all, and at most at once: the extra load on a
server that is slow for everybody."""
_REMEMBERED, _FEWEST = 64, 8

T = TypeVar("T")


class Hedging:
    """What one object store's requests lately took, and how many of them were asked for twice."""

    def __init__(self) -> None:
        self.started = self.won = 0
        """Second requests, and those that came first."""
        self._recent: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._credit = BURST

    async def first_answer(self, request: Callable[[], Coroutine[Any, Any, T]], size: int) -> T:
        """What the request returns, or a second one like it if that is faster.

        Args:
            request: reads something; may run twice at a time.
            size: bytes that it moves, about.

        Raises:
            Exception: what the request raised; only if both failed where there were two.
        """
        tasks = {asyncio.ensure_future(self._timed(request, size))}
        try:
            done, _ = await asyncio.wait(tasks, timeout=self._patience_s(size))
            if not done and self._credit >= 1:
                self._credit -= 1
                self.started += 1
                second = asyncio.ensure_future(self._timed(request, size))
                tasks.add(second)
                winner = await _first_success(tasks)
                self.won += winner is second
                return winner.result()
            return (await _first_success(tasks)).result()
        finally:
            for task in tasks:
                task.cancel()  # closes the loser's connection
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _timed(self, request: Callable[[], Coroutine[Any, Any, T]], size: int) -> T:
        start = time.monotonic()
        answer = await request()
        self._recent.append((size, time.monotonic() - start))
        self._credit = min(BURST, self._credit + SHARE)
        return answer

    def _patience_s(self, size: int) -> float:
        """How long to wait before a second request."""
        alike = [seconds for other, seconds in self._recent if other >= size]
        if len(alike) < _FEWEST:
            return FIRST_WAIT_S + size / FIRST_BYTES_PER_S
        return max(SHORTEST_WAIT_S, TIMES_TYPICAL * statistics.median(alike))


async def _first_success(tasks: set["asyncio.Task[T]"]) -> "asyncio.Task[T]":
    """The first task that ends without an error; if all fail, the last one to fail."""
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not pending or (not task.cancelled() and task.exception() is None):
                good = [t for t in done if not t.cancelled() and t.exception() is None]
                return good[0] if good else task
