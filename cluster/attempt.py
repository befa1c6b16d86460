"""One attempt of a run: a Ray Train run of a fixed number of workers, watched to its end.

It runs in a thread of the process that started the command, whose main thread watches: it passes on
signals, shows progress, and ends what stands still. Bounded is the wait for the workers' start, for
each rank's next step, for each answer of the board, and for Ray to end an attempt whose workers
have ended: whichever of these processes is stopped or killed, the attempt ends. Not bounded are the
run's listener, which is called here, and Ray's own servers on this machine.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from tqdm import tqdm

from cluster import hangs
from cluster.agreement import versions
from cluster.board import ANSWER_S, Snapshot, make_board
from cluster.controller_side import ControllerSide
from cluster.devices import leaving, resources, uses_gpus
from cluster.quiet_data import DatalessTrainer, QuietDataConfig
from cluster.ray_storage import ray_storage
from cluster.rendezvous import GuardedTorchConfig
from cluster.worker import train_on_rank
from distgan.config import Config
from distgan.errors import DistganError
from distgan.trainer import Listener, StopRequests, progress_facts

RESIZE = int(signal.SIGUSR2)
"""Asks the workers to stop with a checkpoint, because more or others shall work."""

_POLL_S = 0.2
_LEAVING_S = 1.0
"""How often it is looked for machines that are about to go; those of a cloud give half a minute."""
_LISTEN_S = 0.05
_START_S = 120.0
"""For the board's process to start."""
_END_S = 30.0
"""For Ray to end an attempt whose workers have ended."""
_BOARD = "the process that stands between the command and its workers"


class FaultError(DistganError):
    """Machines failed too often; the run can be taken up again."""


class Attempt:
    """See the module's text."""

    def __init__(
        self, config: Config, size: int, listener: Listener | None, *, seen: bool = False
    ) -> None:
        """`seen`: the ranks of an earlier attempt have seen the run's folder."""
        self.config, self.size, self.listener = config, size, listener
        self.board = make_board()
        self.told = self.moving = False
        self.asked: int | None = None
        """The signal that asks the workers to stop, once they were told."""
        self.why = ""
        """What the workers were asked to stop for, if it was for a resize."""
        self.started = self.looked_for_room = self.looked_for_leaving = time.monotonic()
        """When; and when last it was looked for room to grow, and for machines that go."""
        self.error: BaseException | None = None
        self.last = Snapshot(0.0, {}, [], None)
        path, filesystem = ray_storage(config.run.dir)
        self.trainer = DatalessTrainer(
            train_on_rank,
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "board": self.board,
                "versions": versions(),
                "listening": listener is not None,
                "seen": seen,
            },
            torch_config=GuardedTorchConfig(board=self.board, timeout_s=_group_timeout_s(config)),
            scaling_config=ScalingConfig(
                num_workers=size,
                use_gpu=uses_gpus(config),
                resources_per_worker=dict(resources(config)),
            ),
            run_config=RunConfig(
                name=_shown_name(config.run.dir),
                storage_path=path,
                storage_filesystem=filesystem,
                logging_config=LoggingConfig(log_level="WARNING"),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                callbacks=[ControllerSide(self.board)],  # type: ignore[list-item]  # taken, too
            ),
            dataset_config=QuietDataConfig(),
        )
        self.thread = threading.Thread(target=self._fit, daemon=True, name="fit")

    def _fit(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:  # noqa: BLE001  # judged by the run
            self.error = error

    def watch(
        self, signals: StopRequests, could_grow: Callable[[], bool], bar: "tqdm[NoReturn]"
    ) -> BaseException | None:
        """Returns when the attempt has ended; passes signals on, and ends one that can't go on.

        Returns:
            What went wrong; None if nothing did, or if the run had come to its outcome before.
        """
        bar.set_postfix_str("starting workers")
        self.started = time.monotonic()
        self.thread.start()
        fault: FaultError | None = None
        try:
            while self.thread.is_alive() and not hangs.over(self.last, self.size):
                self.thread.join(_POLL_S if self.listener is None else _LISTEN_S)
                self._look(bar)
                self._pass_on(signals, could_grow)
                self._check_progress()
        except FaultError as error:
            fault = error
            self._kill_workers()
        forced = self._end_controller()
        try:
            self._look(bar)
            ray.kill(self.board)
        except FaultError:  # what the board said before stands
            self._kill_workers()
        return None if self.last.outcome is not None else fault or forced or self.error

    def _end_controller(self) -> FaultError | None:
        """Ray's process that looks after the workers: it ends when they do, or is ended."""
        limit_s = min(self.config.cluster.hang_seconds, _END_S)
        self.thread.join(limit_s)
        if not self.thread.is_alive():
            return None
        tqdm.write(f"Ray's TrainController did not end {limit_s:g} s after the workers; killing it")
        self._kill_workers()
        if self.last.controller_pid:
            hangs.kill([(_own_node(), self.last.controller_pid)])
            self.thread.join(limit_s)
        return FaultError("Ray's TrainController stood still")

    def _look(self, bar: "tqdm[NoReturn]") -> None:
        self.last = self._ask("read")
        self._show(bar)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What a method of the board returns.

        Raises:
            FaultError: the board is gone or gives no answer; without it no worker can go on.
        """
        limit_s = min(self.config.cluster.hang_seconds, ANSWER_S)
        if not self.last.pid:
            limit_s = _START_S
        try:
            return ray.get(getattr(self.board, name).remote(*arguments), timeout=limit_s)
        except GetTimeoutError as error:
            raise FaultError(f"{_BOARD} gave no answer for {limit_s:g} s") from error
        except RayError as error:
            raise FaultError(f"{_BOARD} has ended ({type(error).__name__})") from error

    def _pass_on(self, signals: StopRequests, could_grow: Callable[[], bool]) -> None:
        """To the listener what rank 0 waits with, and to the workers what asks them to stop."""
        heard = self._listen()
        wanted = signals.received
        if wanted is None and self.asked is None:
            self.why = self._why_resize(could_grow)
            wanted = RESIZE if self.why else None
        if wanted is not None and wanted != self.asked:
            self.asked = wanted
            self._ask("request_stop", wanted)
        if heard:  # only now: the stop that it may have asked for is known
            self._ask("go_on")

    def _why_resize(self, could_grow: Callable[[], bool]) -> str:
        """Looks from time to time; empty if nothing asks for it."""
        now = time.monotonic()
        if now - self.looked_for_leaving >= _LEAVING_S:
            self.looked_for_leaving = now
            going = leaving()
            lost = [str(r) for r, f in sorted(self.last.ranks.items()) if f.node_id in going]
            if lost:
                return f"the machine of rank {', '.join(lost)} is about to go"
        if now - self.looked_for_room >= self.config.cluster.resize_seconds:
            self.looked_for_room = now
            if could_grow():
                return "the cluster has grown"
        return ""

    def _listen(self) -> bool:
        """Tells the listener what rank 0 waits with, if it does."""
        evaluation = self.last.evaluation
        if evaluation is None or self.listener is None:
            return False
        self.listener(evaluation.step, evaluation.seconds, evaluation.logged)
        return True

    def _show(self, bar: "tqdm[NoReturn]") -> None:
        ranks = self.last.ranks
        if not self.told and len(ranks) == self.size:
            self.told = True
            places = (f"rank {r} (pid {f.pid} on {f.host})" for r, f in sorted(ranks.items()))
            tqdm.write(f"workers: {', '.join(places)}")
        first = ranks.get(0)
        if first is None or first.step < 0 or (self.moving and first.step == bar.n):
            return
        bar.set_postfix(progress_facts(first.logged), refresh=False)
        if not self.moving:  # where the run goes on, back from where a failed attempt was
            self.moving = True
            bar.initial = bar.n = bar.last_print_n = first.step
            bar.unpause()  # the start of the workers does not count for the speed
        bar.update(first.step - bar.n)

    def _check_progress(self) -> None:
        """Raises `FaultError` if ranks hang or never start, after their states and stacks are
        told."""
        limit_s = self.config.cluster.hang_seconds
        missing = hangs.missing(self.last, self.size)  # the others wait for them
        if hangs.hanging(self.last, limit_s):
            suspects = missing or hangs.suspects(self.last)
            self._tell_of("hanging", suspects, f"made no step for {limit_s:g} s")
        limit_s += _placing_s()
        if missing and time.monotonic() - self.started > limit_s:
            self._tell_of("not started", missing, f"did not start within {limit_s:g} s")

    def _tell_of(self, title: str, ranks: list[int], what: str) -> NoReturn:
        names = ", ".join(f"rank {rank}" for rank in ranks)
        tqdm.write(f"{title}: {names}\n{hangs.describe(self.last)}")
        raise FaultError(f"{names} {what}")

    def _kill_workers(self) -> None:
        """So that Ray sees the attempt as failed. Without the board, a worker that has not told of
        itself yet ends when it tries to."""
        known = self.last.starting | self.last.ranks
        processes = [(facts.node_id, facts.pid) for facts in known.values()]
        if self.last.pid:  # `ray.kill` alone asks a stopped process to end, in vain
            processes.append((_own_node(), self.last.pid))
        hangs.kill(processes)
        ray.kill(self.board)


def _shown_name(run_dir: str) -> str:
    """By which Ray's dashboard tells runs apart; the last part of the folder or URL."""
    return run_dir.rstrip("/").rpartition("/")[2] or "run"


def _placing_s() -> float:
    """What Ray Train takes to find places for the workers, before it gives up."""
    return float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])


def _group_timeout_s(config: Config) -> int:
    """For collectives: later than this process, which knows who hangs, ends them."""
    return math.ceil(config.cluster.hang_seconds + 2 * _placing_s())


def _own_node() -> str:
    """Where the board and the controller run, too."""
    return str(ray.get_runtime_context().get_node_id())
