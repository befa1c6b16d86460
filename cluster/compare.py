"""The jobs of a comparison side by side, as Ray tasks: for `distgan.compare`.

Each task has a process of its own, so that the peak of memory is its own. A task whose machine is
lost is started again; a run then goes on from its newest checkpoint.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from cluster.devices import places, resources
from cluster.prepare import check_folders
from cluster.ray_cluster import connected, node_addresses, own_address
from distgan.compare.jobs import Job
from distgan.compare.runner import stop_for
from distgan.config import Config
from distgan.data.workers import num_cores
from distgan.errors import DistganError, UserError
from distgan.run_folder import StopSignals

RETRIES = 2
"""Of a job whose worker process or machine died."""

_POLL_S = 0.5
_STOP_S = 60.0
"""How long runs have to write their checkpoints after a signal."""
_OBJECT_STORE_BYTES = 100_000_000  # of a private cluster: nothing large goes through it

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


class OnRay:
    """As many jobs at a time as are asked for.

    Args:
        parallel: jobs at a time.
        config: says what each needs (cluster.cpus_per_worker, train.device).
        folders: of data and results, absolute: local ones must be the same on all machines.

    Raises:
        UserError: no job at a time.
    """

    def __init__(self, parallel: int, config: Config, folders: Sequence[str]) -> None:
        if parallel < 1:
            raise UserError(f"--parallel {parallel}: at least one run at a time")
        self.parallel, self.config, self.folders = parallel, config, folders

    def ask(self, question: Callable[[Argument], Answer], argument: Argument) -> Answer:
        """See `distgan.compare.runner.Executor`."""
        import ray

        with self._cluster():
            answer: Answer = ray.get(self._remote(question).remote(argument))
            return answer

    def run(self, jobs: Sequence[Job]) -> None:
        """See `distgan.compare.runner.Executor`.

        Raises:
            UserError: the cluster has fewer devices than jobs at a time, or can't see the folders.
        """
        todo = [job for job in jobs if not job.is_done()]
        if not todo:
            return
        with self._cluster(), StopSignals().watching() as signals:
            self._check_size()
            check_folders(self.folders, own_address(), node_addresses())
            _SideBySide(self._remote(_perform), todo, self.parallel).to_the_end(signals)

    def _cluster(self) -> contextlib.AbstractContextManager[None]:
        return connected(num_cpus=num_cores(), object_store_bytes=_OBJECT_STORE_BYTES)

    def _check_size(self) -> None:
        have = places(self.config).total
        if self.parallel > have:
            raise UserError(
                f"--parallel {self.parallel}: the Ray cluster has room for {have} runs at a time "
                f"(cluster.cpus_per_worker={self.config.cluster.cpus_per_worker:g}); take "
                f"--parallel {have}, or join a larger one (RAY_ADDRESS)"
            )

    def _remote(self, function: Callable[..., Any]) -> Any:
        import ray

        needs = resources(self.config)
        return ray.remote(
            num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_retries=RETRIES,
            max_calls=1,  # a fresh process each
        )(function)  # fmt: skip


class _SideBySide:
    def __init__(self, task: Any, jobs: Sequence[Job], parallel: int) -> None:
        self.task, self.waiting, self.parallel = task, list(jobs), parallel
        self.total, self.begun = len(jobs), 0
        self.running: dict[Any, Job] = {}

    def to_the_end(self, signals: StopSignals) -> None:
        import ray

        try:
            while (self.waiting or self.running) and signals.received is None:
                self._fill_up()
                done, _ = ray.wait(list(self.running), num_returns=1, timeout=_POLL_S)
                for reference in done:
                    _check(reference, self.running.pop(reference))
        finally:
            self._stop()
        if signals.received is not None:
            stop_for(signals.received)

    def _fill_up(self) -> None:
        while self.waiting and len(self.running) < self.parallel:
            job = self.waiting.pop(0)
            self.begun += 1
            tqdm.write(f"[{self.begun}/{self.total}] {job.name}")
            self.running[self.task.remote(job)] = job

    def _stop(self) -> None:
        """Interrupts what runs; runs then end with a checkpoint."""
        import ray

        left = list(self.running)
        for reference in left:
            ray.cancel(reference, force=False)
        if left:
            ray.wait(left, num_returns=len(left), timeout=_STOP_S)


def _perform(job: Job) -> None:
    """In a task; credentials come from this machine's own environment."""
    if job.perform(show_progress=False):
        raise DistganError("stopped by a signal")


def _check(reference: Any, job: Job) -> None:
    """Raises what a job that failed has to say."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, DistganError):
            raise type(error.cause)(f"{job.name}: {error.cause}") from None
        raise
    except RayError as error:
        raise DistganError(
            f"{job.name}: its worker process or machine died {RETRIES + 1} times "
            f"({type(error).__name__}; out of memory?); run the same command again to go on"
        ) from error
