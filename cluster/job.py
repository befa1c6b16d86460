"""A training run on Ray: attempts, one after the other, until it ends or cannot go on.

What an attempt's end means is decided here: bad input and divergence end the run; a machine's fault
starts the next attempt from the newest checkpoint in storage, a bounded number of times without
progress; a better size of the cluster starts it too.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from tqdm import tqdm

from cluster.attempt import RESIZE, Attempt, FaultError
from cluster.autoscaling import room
from cluster.board import Failure
from cluster.devices import places, wait_until_settled, with_device
from cluster.parity import require_parity
from cluster.ray_cluster import connected, known_to_helpers, node_addresses, own_address
from cluster.scaling import check_sizes, size_for, too_few
from cluster.stage_checks import check_sharding
from distgan import storage
from distgan.checkpoint import committed_steps
from distgan.config import Config
from distgan.data.manifest import read_manifest
from distgan.data.stream import check_fits
from distgan.errors import DivergedError, UserError, of_kind
from distgan.run_folder import StopSignals, alone_in, start_or_resume
from distgan.trainer import Listener, Outcome, StopRequests

_WAIT_S = 0.5
_RELEASE_S = 20.0
"""Ray gives back the places of workers that have ended within a few seconds."""
_TELL_S = 3.0
_OBJECT_STORE_BYTES = 256 * 2**20  # what travels through Ray is small; data and weights do not

# Ray Train reads these in the process that starts a run.
RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also how soon a dead worker is seen
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "90",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the run shows in Ray's dashboard
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the attempt looks for machines that go itself
}


def train_on_cluster(
    config: Config,
    *,
    show_progress: bool = True,
    requests: StopRequests | None = None,
    listener: Listener | None = None,
) -> Outcome:
    """Trains, or goes on with, the run in `config.run.dir` with `cluster.num_workers` workers.

    Args:
        requests: what asks to stop; None means SIGINT and SIGTERM (in the main thread only).
        listener: told what is logged; the workers wait for it.

    Raises:
        UserError: bad input, or the cluster can't do what is asked.
        DivergedError: training diverged, now or at an earlier start.
        FaultError: more than `cluster.max_failures` machine faults in a row without progress.
    """
    storage.configure(config.storage)
    config = start_or_resume(config)
    check_sizes(config)
    check_sharding(config)
    for name, value in RAY_TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone_in(config.run.dir))
        stack.enter_context(_connected())
        heard = requests or stack.enter_context(StopSignals().watching())
        config = with_device(config)
        _check_data(config)
        if config.cluster.parity_check:
            tqdm.write(str(require_parity(config)))
        with room(config, lambda: heard.received is not None):
            return _Run(config, heard, listener, show_progress=show_progress).to_its_end()


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    with (
        connected(object_store_bytes=_OBJECT_STORE_BYTES, dashboard=True, show_output=True),
        known_to_helpers(),
    ):
        yield


class _Run:
    def __init__(
        self,
        config: Config,
        signals: StopRequests,
        listener: Listener | None = None,
        *,
        show_progress: bool = True,
    ) -> None:
        self.config, self.signals = config, signals
        self.listener, self.show_progress = listener, show_progress
        self.failures = 0
        """Machine faults since the last new checkpoint."""
        self.started = False
        """Whether a worker of this run has found a place."""
        self.seen = False
        """Whether all ranks of an attempt have seen the same storage."""

    def to_its_end(self) -> Outcome:
        size = self._size()  # or refuses, before a progress line begins
        steps = self.config.train.max_steps
        with tqdm(total=steps, unit="step", disable=not self.show_progress) as bar:
            return self._attempts(bar, size)

    def _attempts(self, bar: "tqdm[NoReturn]", size: int | None) -> Outcome:
        while True:
            newest = self._newest()
            if size is None:
                number = self.signals.received
                return Outcome(step=max(newest, 0), reason="a signal", signal=number)
            config = start_or_resume(self.config)  # an earlier attempt may have found answers
            attempt = Attempt(config, size, self.listener, seen=self.seen)
            error = attempt.watch(self.signals, self._could_grow_from(attempt), bar)
            snapshot = attempt.last
            self.started = self.started or bool(snapshot.starting or snapshot.ranks)
            self.seen = self.seen or any(facts.step >= 0 for facts in snapshot.ranks.values())
            if error is None and snapshot.outcome is not None:
                outcome = Outcome(**snapshot.outcome)
                if outcome.signal != RESIZE:
                    return outcome
                tqdm.write(f"at step {outcome.step}: {attempt.why}")
            else:
                self._judge(error, snapshot.failures, progress=self._newest() > newest)
            size = self._size()

    def _judge(self, error: BaseException | None, own: list[Failure], *, progress: bool) -> None:
        """Raises what ends the run; returns if it may go on."""
        told = [of_kind(failure.kind, failure.message) for failure in own]
        for kind in (DivergedError, UserError):
            for failed in told:
                if isinstance(failed, kind):
                    raise failed
        self.failures = 1 if progress else self.failures + 1
        reason = own[0].message if own else _reason(error)
        if self.signals.received is not None:
            raise FaultError(f"the workers failed while they were asked to stop: {reason}")
        limit = self.config.cluster.max_failures
        if self.failures > limit:
            raise FaultError(
                f"the workers failed {self.failures} times in a row without a new checkpoint "
                f"(cluster.max_failures={limit}); the last time: {reason}. The same command goes "
                f"on from the newest checkpoint in {self.config.run.dir}"
            )
        tqdm.write(
            f"the workers failed ({self.failures} of {limit} times in a row): {reason}\n"
            f"going on from step {max(self._newest(), 0)}"
        )

    def _newest(self) -> int:
        return max(committed_steps(self.config.run.dir), default=-1)

    def _size(self) -> int | None:
        """How many workers to start now; None if a signal came while too few places were free.

        Workers that ended just now are given the time to free theirs. What others hold is waited
        for only once the run has started.

        Raises:
            UserError: too few are free at the start of the run.
            FaultError: too few are left, and for long.
        """
        if self.failures:
            wait_until_settled(lambda: self.signals.received is not None)
        patience_s = self.config.cluster.hang_seconds if self.started else _RELEASE_S
        begun = time.monotonic()
        told = False
        while self.signals.received is None:
            there, waited_s = places(self.config), time.monotonic() - begun
            size, at_most = (size_for(self.config, n) for n in (there.free, there.total))
            if size and (size == at_most or waited_s > _RELEASE_S):
                return size
            problem = too_few(self.config, there)
            if not self.started and (not at_most or waited_s > patience_s):
                raise problem
            if waited_s > patience_s:
                raise FaultError(f"after {patience_s:g} s of waiting: {problem}") from problem
            if waited_s > _TELL_S and not told:
                tqdm.write(f"waiting for machines, {patience_s:g} s at most: {problem}")
                told = True
            time.sleep(_WAIT_S)
        return None

    def _could_grow_from(self, attempt: Attempt) -> Callable[[], bool]:
        def could_grow() -> bool:
            if len(attempt.last.ranks) < attempt.size:
                return False  # until all have begun, places that are their own look free
            num_places = attempt.size + places(self.config).free
            return size_for(self.config, num_places) > attempt.size

        return could_grow


def _check_data(config: Config) -> None:
    """Raises `UserError` before anything starts if the data set does not fit."""
    manifest, _ = read_manifest(config.data.shards)
    check_fits(manifest, config.data, config.data.shards)
    elsewhere = sorted(node_addresses() - {own_address()})
    if elsewhere and storage.is_local(config.data.shards):
        tqdm.write(
            f"data.shards={config.data.shards} is a local folder; the other machines "
            f"({', '.join(elsewhere)}) must see the same one"
        )


def _reason(error: BaseException | None) -> str:
    """The last line of what Ray tells, which is the worker's own, without Ray's guesses."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return "they ended without a word"
    return lines[-1].strip().partition(" Worker exit type")[0]
