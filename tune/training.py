"""A training run in a thread, which halts at each evaluation until it is told to go on."""

import math
import queue
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from distgan import storage
from distgan.checkpoint import committed_steps
from distgan.config import Config
from distgan.errors import UserError
from distgan.metrics.writer import METRICS_NAME, read_metrics
from distgan.trainer import Listener, Outcome, StopRequests
from tune.records import MetricSpec

STOP = int(signal.SIGTERM)
"""What a run hears that shall end with a checkpoint."""


@dataclass(frozen=True)
class Evaluation:
    """The sweep's metrics, at a step where the first of them was logged."""

    step: int
    seconds: float
    values: dict[str, float]


@dataclass(frozen=True)
class End:
    """How the run ended: an outcome, or an error."""

    outcome: Outcome | None
    error: BaseException | None


class UnmeasuredError(UserError):
    """A metric of the sweep is never logged."""


class Train(Protocol):
    """What trains one trial: `train_locally`, `train_on_cluster`."""

    def __call__(
        self, config: Config, *, show_progress: bool, requests: StopRequests, listener: Listener
    ) -> Outcome:
        """Goes on with the run in `config.run.dir`."""
        ...


@dataclass
class Training:
    """`launch.py train` in a thread of this process, for `config.run.dir`."""

    config: Config
    metrics: Sequence[MetricSpec]
    train: Train | None = None
    """None: what `launch.py train` would take for the configuration."""
    received: int | None = None
    """Set to `STOP` to end the run with a checkpoint: at once where it halts, else at its next
    step."""
    seconds: float = 0.0
    """Training time over all starts, as it was logged last."""
    _latest: dict[str, float] = field(default_factory=dict)
    _events: "queue.Queue[Evaluation | End]" = field(default_factory=queue.Queue)
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _halted: bool = False

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._train, daemon=True, name="train")
        self._thread.start()

    def next(self) -> Evaluation | End:
        """Lets a halted run go on; returns its next evaluation, or how it ended."""
        self._release()
        event = self._events.get()
        self._halted = isinstance(event, Evaluation)
        return event

    def end(self) -> None:
        """Returns when the run has ended, with a checkpoint if it was under way."""
        self.received = self.received or STOP
        while self._thread.is_alive():
            self._release()
            self._thread.join(0.05)
            self._halted = not self._events.empty()
            while not self._events.empty():
                self._events.get()

    def _release(self) -> None:
        if self._halted:
            self._halted = False
            self._go.release()

    def _train(self) -> None:
        try:
            self._latest = _logged_before(self.config.run.dir)
            train = self.train or _train_of(self.config)
            outcome = train(self.config, show_progress=False, requests=self, listener=self._listen)
            if outcome.signal is None:
                self._refuse_unmeasured()
            self._events.put(End(outcome, None))
        except BaseException as error:  # noqa: BLE001  # judged by whoever waits for the event
            self._events.put(End(None, error))

    def _listen(self, step: int, seconds: float, logged: Mapping[str, float]) -> None:
        self.seconds = seconds
        self._latest |= logged
        log = self.config.log
        if step >= max(log.interval_steps, log.proxy_interval_steps):
            self._refuse_unmeasured()
        if self.metrics[0].name in logged and self.received is None:
            values = {m.name: self._latest.get(m.name, math.nan) for m in self.metrics}
            self._events.put(Evaluation(step, seconds, values))
            self._go.acquire()

    def _refuse_unmeasured(self) -> None:
        for metric in self.metrics:
            if metric.name not in self._latest:
                logged = ", ".join(sorted(self._latest)) or "nothing yet: train.max_steps ends it"
                raise UnmeasuredError(
                    f"--metric {metric.name}: no trial reports it; logged are: {logged}"
                )


def _train_of(config: Config) -> Train:
    if config.cluster.num_workers:
        from cluster.job import train_on_cluster

        return train_on_cluster
    from distgan.local import train_locally

    return train_locally


def _logged_before(run_dir: str) -> dict[str, float]:
    """What earlier starts logged last, up to the checkpoint from which the run goes on."""
    path = storage.join(run_dir, METRICS_NAME)
    step = max(committed_steps(run_dir), default=0)
    latest: dict[str, float] = {}
    if step and storage.exists(path):
        for line in read_metrics(path):
            if line["step"] <= step:
                latest |= {tag: value for tag, value in line.items() if tag != "step"}
    return latest
