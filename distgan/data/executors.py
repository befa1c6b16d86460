"""Who works on videos: this process, or processes of this machine; on Ray see `cluster.prepare`."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Protocol

from distgan import storage
from distgan.data.prepare_video import start_worker
from distgan.data.spooling import VideoJob
from distgan.data.workers import no_ctrl_c_in_new_processes, num_cores
from distgan.errors import DistganError

Work = Callable[[VideoJob], None]

JOBS_AHEAD = 16
"""Per worker: how far the others may be ahead of one long video. Bounds what waits for its turn."""


class Executor(Protocol):
    """Does the same work on every video."""

    def run(self, work: Work, jobs: Sequence[VideoJob]) -> Generator[VideoJob, None, None]:
        """Yields each job when its work is done, in the order of the jobs; closing ends the work.

        At most `JOBS_AHEAD` jobs a worker are begun before they are asked for.

        Args:
            work: can be pickled; doing it twice on a job is harmless.

        Raises:
            DistganError: workers died; besides, whatever `work` raises.
        """
        ...


class InProcesses:
    """Worker processes of this machine.

    Args:
        processes: 0 means one a CPU core; 1 works in this process.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes or num_cores()

    def run(self, work: Work, jobs: Sequence[VideoJob]) -> Generator[VideoJob, None, None]:
        """See `Executor`."""
        processes = min(self.processes, len(jobs))
        if processes <= 1:
            for job in jobs:
                work(job)
                yield job
            return
        context = get_context("spawn")
        called_off = context.Event()
        pool = ProcessPoolExecutor(
            processes,
            mp_context=context,
            initializer=start_worker,
            initargs=(called_off, storage.options()),
        )
        with pool, contextlib.ExitStack() as stack:
            stack.callback(pool.shutdown, cancel_futures=True)
            stack.callback(called_off.set)  # after success nobody is left to see it
            yield from in_order(pool, work, jobs, JOBS_AHEAD * processes)


def in_order(
    pool: Pool, work: Work, jobs: Sequence[VideoJob], ahead: int
) -> Generator[VideoJob, None, None]:
    """Each job when a pool has done its work, in the order of the jobs, at most `ahead` begun."""
    pending: deque[tuple[VideoJob, Future[None]]] = deque()
    try:
        for job in jobs:
            with no_ctrl_c_in_new_processes():
                pending.append((job, pool.submit(work, job)))
            if len(pending) >= ahead:
                yield _first(pending)
        while pending:
            yield _first(pending)
    except BrokenProcessPool as error:
        raise DistganError(
            "a worker process died (out of memory, or a video that crashes the decoder) at or after"
            f" {job.path!r}; run the same command again with fewer prepare.num_processes, or take "
            "that video out"
        ) from error


def _first(pending: deque[tuple[VideoJob, Future[None]]]) -> VideoJob:
    job, future = pending[0]
    future.result()
    pending.popleft()
    return job
