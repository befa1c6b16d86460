"""What the run does in the process of Ray Train's controller."""

import os
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup


class ControllerSide(ControllerCallback):
    """Tells the board of the controller's process, which has no name by which it could be found."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        TrainController.worker_group_cls = TidyWorkerGroup
        self.board.note_controller.remote(os.getpid())


class TidyWorkerGroup(WorkerGroup):
    """Gives its places back also where a worker dies between its start and the first step.

    Ray's own forgets such a group without ending it, and its places stay taken for as long as the
    command lives: there would be none for the next attempt.
    """

    def _start(self) -> None:
        try:
            super()._start()
        except Exception:
            if self.has_started():
                self.shutdown()
            raise
