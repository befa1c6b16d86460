"""Videos worked on by Ray tasks, for `distgan.data.prepare`.

Clips never pass through Ray: a task writes them to the output's unfinished part, from where this
process packs them. So a task that dies is simply run again, and memory stays bounded.
"""

import contextlib
import threading
from collections.abc import Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.ray_cluster import connected, node_addresses, num_cluster_cpus, own_address
from distgan import storage
from distgan.config import StorageConfig
from distgan.data.executors import JOBS_AHEAD, Work, in_order
from distgan.data.spooling import VideoJob
from distgan.data.workers import num_cores
from distgan.errors import DistganError, UserError

RETRIES = 2
"""Of a video whose worker process or machine died."""

_OBJECT_STORE_BYTES = 100_000_000  # of a private cluster: nothing large goes through it


class OnRay:
    """As many videos at a time as there are workers; the cluster is needed while `run` runs.

    Args:
        num_workers: tasks at a time, one CPU each.
        folders: input and output, absolute: local ones must be the same on all machines.
    """

    def __init__(self, num_workers: int, folders: Sequence[str]) -> None:
        self.num_workers = num_workers
        self.folders = folders

    def run(self, work: Work, jobs: Sequence[VideoJob]) -> Generator[VideoJob, None, None]:
        """See `distgan.data.executors.Executor`.

        Raises:
            UserError: the cluster has fewer CPUs than workers, or can't see the folders.
            DistganError: a video's worker died time and again; or what the work raised.
        """
        if not jobs:
            return
        with connected(num_cpus=num_cores(), object_store_bytes=_OBJECT_STORE_BYTES):
            check_cpus(self.num_workers, num_cluster_cpus())
            check_folders(self.folders, own_address(), node_addresses())
            yield from _run(work, jobs, min(self.num_workers, len(jobs)))


def check_cpus(num_workers: int, num_cpus: int) -> None:
    """Raises `UserError` for more workers than CPUs: the rest would wait without a word."""
    if num_workers > num_cpus:
        raise UserError(
            f"cluster.num_workers={num_workers} is more than the {num_cpus} CPUs of the Ray cluster"
            f"; set cluster.num_workers={num_cpus}, or join a larger one (RAY_ADDRESS)"
        )


def check_folders(folders: Sequence[str], own: str, nodes: Collection[str]) -> None:
    """Raises `UserError` for local folders if the cluster has other machines than this one."""
    others = sorted(set(nodes) - {own})
    for folder in folders:
        if others and storage.is_local(folder):
            raise UserError(
                f"{folder} is a folder of this machine ({own}), but the Ray cluster has others "
                f"({', '.join(others[:3])}); give URLs of object storage, or work without Ray "
                "(cluster.num_workers=0)"
            )


def _run(work: Work, jobs: Sequence[VideoJob], num_workers: int) -> Generator[VideoJob, None, None]:
    """Threads that each wait for one task at a time: that bounds the tasks, and orders them."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_work_on)
    options = storage.options()
    running: set[Any] = set()
    lock, stopped = threading.Lock(), threading.Event()

    def work_on(job: VideoJob) -> None:
        with lock:
            if stopped.is_set():
                return
            reference = task.remote(work, job, options)
            running.add(reference)
        try:
            _result(reference, job)
        finally:
            with lock:
                running.discard(reference)

    with ThreadPoolExecutor(num_workers, thread_name_prefix="ray-task") as pool:
        try:
            yield from in_order(pool, work_on, jobs, JOBS_AHEAD * num_workers)
        finally:
            with lock:
                stopped.set()
                left = list(running)
            pool.shutdown(wait=False, cancel_futures=True)
            for reference in left:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.cancel(reference, force=True)


def _work_on(work: Work, job: VideoJob, options: StorageConfig) -> None:
    """In a task; credentials come from this machine's own environment."""
    storage.configure(options)
    work(job)


def _result(reference: Any, job: VideoJob) -> None:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, (DistganError, OSError)):
            raise error.cause from None
        raise
    except RayError as error:
        raise DistganError(
            f"the work on {job.path!r} was lost {RETRIES + 1} times, as its worker process or "
            f"machine died ({type(error).__name__}: out of memory, or a video that crashes the "
            "decoder); run the same command again to go on, or take that video out"
        ) from error
