"""Equal work on many things, in worker processes of this machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from distgan import storage
from distgan.config import StorageConfig
from distgan.errors import DistganError

Job = TypeVar("Job")
Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None  # of a worker process: too large to send with each job


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, processes: int = 0
) -> Generator[Result, None, None]:
    """`work(job)` for every job, in the order of the jobs. Close it to end its workers at once.

    Args:
        work: a function of a module, or a `partial` of one.
        processes: 0 means one a CPU core; 1 works in this process.

    Raises:
        DistganError: a worker died; besides, whatever `work` raises.
    """
    processes = min(processes or num_cores(), len(jobs))
    if processes <= 1:
        yield from (work(job) for job in jobs)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(work, storage.options()),
    )
    try:
        with no_ctrl_c_in_new_processes():
            futures = [pool.submit(_do, job) for job in jobs]
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise DistganError(
            "a worker process died (out of memory, or a clip that crashes the decoder); try again "
            "with --processes 1"
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # a shard may take it long to finish
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[[Any], Any], options: StorageConfig) -> None:
    end_with_parent()
    storage.configure(options)
    global _work
    _work = work


def _do(job: Any) -> Any:
    assert _work is not None, "set by _start"
    return _work(job)


def end_with_parent() -> None:
    """From now on this worker process ends when its parent does, even by SIGKILL.

    Without it, a worker waits for ever: it holds the other end of its own queue.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "for worker processes only"

    def watch() -> None:
        parent.join()
        os._exit(1)  # there is nobody left who would want it to put anything away

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextlib.contextmanager
def no_ctrl_c_in_new_processes() -> Iterator[None]:
    """Processes that start in here never see SIGINT, not even while they start; this one, later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
