"""One attempt of a run: a Ray Train run of a fixed number of workers, watched to its end.

It runs in a thread of the process that started the command, whose main thread watches: it passes on
signals, shows progress, and ends workers that hang.
"""

import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import ray
from ray import train as ray_train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig
from tqdm import tqdm

from cluster import hangs
from cluster.board import Snapshot, make_board
from cluster.devices import resources, uses_gpus
from cluster.quiet_data import QuietDataConfig
from cluster.ray_storage import ray_storage
from cluster.rendezvous import GuardedTorchConfig
from cluster.worker import train_on_rank, versions
from distgan.config import Config
from distgan.errors import DistganError
from distgan.trainer import Listener, StopRequests, progress_facts

RESIZE = int(signal.SIGUSR2)
"""Asks the workers to stop with a checkpoint, because more of them could work."""

_POLL_S = 0.2
_LISTEN_S = 0.05


class FaultError(DistganError):
    """Machines failed too often; the run can be taken up again."""


class Attempt:
    """See the module's text."""

    def __init__(self, config: Config, size: int, listener: Listener | None) -> None:
        self.config, self.size, self.listener = config, size, listener
        self.board = make_board()
        self.told = self.moving = False
        self.error: BaseException | None = None
        self.last = Snapshot(0.0, {}, [], None)
        path, filesystem = ray_storage(config.run.dir)
        self.trainer = TorchTrainer(
            train_on_rank,
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "board": self.board,
                "versions": versions(),
                "listening": listener is not None,
            },
            torch_config=GuardedTorchConfig(),
            scaling_config=ray_train.ScalingConfig(
                num_workers=size,
                use_gpu=uses_gpus(config),
                resources_per_worker=dict(resources(config)),
            ),
            run_config=RunConfig(  # type: ignore[arg-type]
                name="train",
                storage_path=path,
                storage_filesystem=filesystem,
                logging_config=LoggingConfig(log_level="WARNING"),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
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
        """Returns when the attempt has ended; passes signals on, and ends one that hangs."""
        bar.set_postfix_str("starting workers")
        self.thread.start()
        asked: int | None = None
        looked = time.monotonic()
        hang: FaultError | None = None
        while self.thread.is_alive():
            self.thread.join(_POLL_S if self.listener is None else _LISTEN_S)
            self.last = ray.get(self.board.read.remote())
            self._show(bar)
            heard = self._listen()
            if signals.received is not None and asked != signals.received:
                asked = signals.received
                ray.get(self.board.request_stop.remote(asked))
            if asked is None and time.monotonic() - looked > self.config.cluster.resize_seconds:
                looked = time.monotonic()
                if could_grow():
                    asked = RESIZE
                    ray.get(self.board.request_stop.remote(asked))
            if heard:  # only now: the stop that it may have asked for is known
                ray.get(self.board.go_on.remote())
            if hang is None and hangs.hanging(self.last, self.config.cluster.hang_seconds):
                hang = self._end_hanging()
        self.last = ray.get(self.board.read.remote())
        self._show(bar)
        ray.kill(self.board)
        return hang or self.error

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

    def _end_hanging(self) -> FaultError:
        names = ", ".join(f"rank {rank}" for rank in hangs.suspects(self.last))
        tqdm.write(f"hanging: {names}\n{hangs.describe(self.last)}")
        hangs.kill_all(self.last)
        return FaultError(f"{names} made no step for {self.config.cluster.hang_seconds:g} s")
