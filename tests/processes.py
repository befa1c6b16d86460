"""Processes that tests interrupt."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence


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
