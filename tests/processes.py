"""Processes that tests interrupt."""

import contextlib
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

from tests.process_view import arguments_of, lives, processes_with

_MARK = "DISTGAN_TEST_RUN"


@contextlib.contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    ready: Callable[[], bool],
    *,
    timeout_s: float = 60,
) -> Iterator[subprocess.Popen[str]]:
    """A process from when `ready` holds, in a group of its own; killed in the end if still there.

    The test fails if that takes longer than the timeout, or if the process ends before.
    """
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + timeout_s
            while not ready():
                assert process.poll() is None, "it ended before it could be interrupted"
                assert time.monotonic() < deadline, "it did not get there"
                time.sleep(0.002)
            yield process
        finally:
            process.kill()


class Descendants:
    """All that comes of programs which have `mark` in their environment.

    A context manager, in which they are looked for all the time: an orphan that has renamed itself
    can't be found any more.
    """

    def __init__(self) -> None:
        self.mark = {_MARK: secrets.token_hex(8)}
        self.seen: set[tuple[int, int]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.3):
            self.seen |= lives(processes_with(_MARK, self.mark[_MARK]))

    def all_end(self, within_s: float, *, but_for: tuple[str, ...] = ()) -> None:
        """Fails unless they do, those with these titles left aside."""
        assert len(self.seen) > 4, "Ray's processes are not among them"
        deadline = time.monotonic() + within_s
        while left := [title for title in self._titles() if not title.startswith(but_for or "-")]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)

    def _titles(self) -> list[str]:
        alive = set(self.seen) & lives(pid for pid, _ in set(self.seen))
        programs = (arguments_of(pid) for pid, _ in alive)
        return [program.replace(b"\0", b" ").decode().strip()[:80] for program in programs]
