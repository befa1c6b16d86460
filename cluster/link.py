"""A worker's thread that keeps in touch with the process that started the run."""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import ray
from ray.exceptions import RayError

from cluster.board import ANSWER_S, Evaluation, own_facts
from distgan.temporary import TemporaryFolder
from distgan.trainer import Trainer

_INTERVAL_S = 0.5
_LISTEN_S = 0.02
ORPHANED = 70
"""Exit code of a worker whose starting process is gone: it must not go on writing to the run."""


class Link:
    """Tells the board how far this rank is, and hears when to stop. A context manager."""

    def __init__(self, board: Any, rank: int) -> None:
        self.board, self.rank = board, rank
        self.trainer: Trainer | None = None
        """Whose step tells progress, as soon as there is one."""
        self.received: int | None = None
        """The signal, once the starting process asks to stop."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="link")

    def __enter__(self) -> Self:
        # In C, so that it works while Python code holds the interpreter.
        self._folder = TemporaryFolder()
        stacks = self._folder.path / "stacks"
        self._file = stacks.open("w")
        faulthandler.register(signal.SIGUSR1, file=self._file, all_threads=True)
        self._tell(self.board.join.remote(self.rank, own_facts(str(stacks))))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._tell(self.board.leave.remote(self.rank))
        faulthandler.unregister(signal.SIGUSR1)
        self._file.close()
        self._folder.remove()

    def listen(self, step: int, seconds: float, logged: Mapping[str, float]) -> None:
        """A trainer's listener: returns when the starting process has taken note."""
        try:
            ray.get(self.board.evaluate.remote(Evaluation(step, seconds, dict(logged))))
            waits = True
            while waits:
                time.sleep(_LISTEN_S)
                waits, self.received = ray.get(self.board.waits.remote())
        except RayError:
            os._exit(ORPHANED)

    def _beat(self) -> None:
        ended = False
        while not ended:  # once more after the end, so that the last step is told
            ended = self._ended.wait(_INTERVAL_S)
            trainer = self.trainer
            step, logged = (trainer.step, trainer.latest) if trainer else (-1, {})
            self.received = self._tell(self.board.beat.remote(self.rank, step, logged))

    def _tell(self, told: Any) -> Any:
        """The board's answer; without one, this worker has nobody to work for."""
        try:
            return ray.get(told, timeout=ANSWER_S)
        except RayError:
            os._exit(ORPHANED)
