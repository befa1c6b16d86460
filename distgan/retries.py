"""Trying again: exponential backoff with full jitter, within a budget of seconds.

A server that says how long to wait (`Retry-After`) is given that time, and the jitter on top.
"""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from distgan.errors import StorageError
from distgan.storage_errors import describe, retry_after_s

FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 20.0
WARN_AFTER_S = 5.0
"""Trouble that lasts longer is said on stderr once: a waiting program must not look dead."""

T = TypeVar("T")
R = TypeVar("R")
Judge = Callable[[Exception], Exception | None]
"""What to raise for an error; None if it may pass and is worth another attempt."""

_log = logging.getLogger(__name__)


class Retrier:
    """Runs attempts until one succeeds, an error is final, or the budget is spent."""

    def __init__(self, budget_s: float, called_off: threading.Event | None = None) -> None:
        """`called_off`, once set, ends the waiting between attempts."""
        self.budget_s = budget_s
        self._called_off = called_off or threading.Event()
        # Its own randomness: the global state belongs to the experiment.
        self._random = random.Random()

    def run(self, attempt: Callable[[int], T], what: str, judge: Judge) -> T:
        """The result of the first attempt that succeeds; attempts are numbered from 0.

        Raises:
            StorageError: errors that may pass went on for longer than the budget.
            Exception: what `judge` returned.
        """
        failing_since = 0.0
        warned = False
        for number in itertools.count():
            try:
                return attempt(number)
            except Exception as error:
                final = judge(error)
                if final is error:
                    raise
                if final is not None:
                    raise final from error
                now = time.monotonic()
                failing_since = failing_since or now
                left = failing_since + self.budget_s - now
                if left <= 0 or self._called_off.is_set():
                    raise StorageError(self._exhausted(what, error, number + 1)) from error
                if not warned and now - failing_since > WARN_AFTER_S:
                    warned = True
                    _log.warning(
                        "can't %s (%s); trying for %.0f s more", what, describe(error), left
                    )
                delay_s = retry_after_s(error) + self._delay(number)
            self._called_off.wait(min(delay_s, left))
        raise AssertionError("an endless loop ended")

    def _delay(self, number: int) -> float:
        longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(number, 30))
        return self._random.uniform(0.0, longest)  # full jitter: a thousand readers spread out

    def _exhausted(self, what: str, error: Exception, attempts: int) -> str:
        return (
            f"can't {what}: still failing after {attempts} attempts in storage.retry_seconds="
            f"{self.budget_s:g}; the last cause: {describe(error)}. When the storage is well "
            "again, run the same command again"
        )


def in_parallel(
    work: Callable[[T, Retrier], R], items: Sequence[T], *, limit: int, budget_s: float
) -> list[R]:
    """`work` on every item, at most `limit` at a time; results in the order of the items.

    The first error is raised, and the other attempts are called off.
    """
    called_off = threading.Event()
    retrier = Retrier(budget_s, called_off)
    if len(items) <= 1 or limit == 1:
        return [work(item, retrier) for item in items]
    with ThreadPoolExecutor(min(limit, len(items)), thread_name_prefix="storage") as pool:
        futures = [pool.submit(work, item, retrier) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            called_off.set()
            for future in futures:
                future.cancel()
            raise
