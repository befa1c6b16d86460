"""SIGTERM ends a command as Ctrl-C does: what it holds is put away, and the exit code says why."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came; like KeyboardInterrupt no `Exception`, so nothing takes it for a failure."""

    exit_code = 143


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """In here the first SIGTERM raises `TerminatedError` in the main thread; more are ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
