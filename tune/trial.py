"""A trial, as Ray Tune's workers run it: the same training as `launch.py train`.

Tune asks for one result after another. Each is an evaluation, at which the training halts until
Tune asks for the next one; the last says how the trial ended. Nothing of a trial's state goes
through Tune: it lies in the trial's run folder, and a trial that is started again goes on there.
"""

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune as ray_tune
from ray.exceptions import RayError

from distgan import storage
from distgan.config import Config
from distgan.config_loading import build_config, with_values
from distgan.errors import DivergedError, UserError
from distgan.run_folder import CONFIG, alone_in, diverged_step, save_config
from tune.copying import copy_state
from tune.population import boundaries
from tune.records import SWEEP, SweepSpec, trial_folder
from tune.training import STOP, End, Evaluation, Train, Training, UnmeasuredError

_POLL_S = 0.5
_PATIENCE_S = 120.0
"""How long a trial's folder may still be held by a process of a driver that was killed."""
_ORPHANED = 70


class Board:
    """An actor beside the driver, through which trials hear what is wanted of them. It ends with
    the driver, and a trial that no longer finds it knows that it is an orphan."""

    def __init__(self) -> None:
        self.interrupted = False
        self.stops: dict[str, str] = {}
        self.faults: dict[str, str] = {}

    def interrupt(self) -> None:
        """All trials end with a checkpoint, to be taken up again."""
        self.interrupted = True

    def is_interrupted(self) -> bool:
        return self.interrupted

    def stop(self, trial_id: str, reason: str) -> None:
        """One trial ends at its last evaluation."""
        self.stops[trial_id] = reason

    def stop_reason(self, trial_id: str) -> str:
        return self.stops.get(trial_id, "")

    def note_fault(self, trial_id: str, text: str) -> None:
        self.faults[trial_id] = text

    def fault(self, trial_id: str) -> str:
        return self.faults.pop(trial_id, "its process died")


class Trial(ray_tune.Trainable):
    """`config` holds the job: trial_id, overrides, seed, until_step, parent and parent_step."""

    def setup(
        self,
        config: dict[str, Any],
        folder: str = "",
        base: Mapping[str, Any] | None = None,
        spec: Mapping[str, Any] | None = None,
        board: Any = None,
        train: Train | None = None,
    ) -> None:
        """Called once in each process; the keywords are the same for all trials."""
        self.folder, self.board, self.train_function = folder, board, train
        self.base, self.spec = build_config(base or {}), SweepSpec.model_validate(spec)
        self.training: Training | None = None
        self.until_reached = False
        self.job = config
        storage.configure(self.base.storage)
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watch").start()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another trial in the same process, which has everything loaded already."""
        self._end_training()
        self.job = new_config
        return True

    def cleanup(self) -> None:
        self._end_training()
        self.ended.set()

    def _end_training(self) -> None:
        if self.training is not None:
            self.training.end()
            self.training = None

    def step(self) -> dict[str, Any]:
        try:
            if self.training is None:
                self.training = Training(self._prepare(), self.spec.metrics, self.train_function)
            else:
                reason = ray.get(self.board.stop_reason.remote(self.job["trial_id"]))
                if reason or self.until_reached:
                    self.training.received = STOP
            event = self.training.next()
        except Exception as error:  # noqa: BLE001  # judged below, like those of the training
            event = End(None, error)
        if isinstance(event, Evaluation):
            until = self.job["until_step"]
            self.until_reached = bool(until) and event.step >= until
            return {
                "state": "running",
                "step": event.step,
                "seconds": event.seconds,
                "values": event.values,
            }
        seconds = self.training.seconds if self.training is not None else 0.0
        self.training = None
        state, reason = self._judge(event)
        step = 0
        if state == "diverged":
            step = diverged_step(trial_folder(self.folder, self.job["trial_id"]))
        return {"done": True, "state": state, "reason": reason, "seconds": seconds, "step": step}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Tune need not keep anything."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass

    def _prepare(self) -> Config:
        """The trial's configuration, and its folder ready to be trained in."""
        self.until_reached = False
        config = trial_config(self.base, self.spec, self.folder, self.job)
        if not storage.exists(storage.join(self.folder, SWEEP)):
            raise UserError(
                f"run.dir={self.folder} is not the same folder on {os.uname().nodename} as where "
                "the sweep was started; give a folder on a shared disk, or object storage"
            )
        self._wait_until_free(config.run.dir)
        if self.job["parent_step"]:
            parent = trial_folder(self.folder, self.job["parent"])
            copy_state(parent, self.job["parent_step"], config)
        elif not storage.exists(storage.join(config.run.dir, CONFIG)):
            save_config(config)  # trial.json is there already; this makes the folder a run's
        return config

    def _wait_until_free(self, run_dir: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                with alone_in(run_dir):
                    return
            except UserError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _judge(self, end: End) -> tuple[str, str]:
        """The trial's state and why; raises what Tune shall meet with another start."""
        if end.outcome is not None:
            reason = ray.get(self.board.stop_reason.remote(self.job["trial_id"]))
            if end.outcome.signal is None:
                return "finished", end.outcome.reason
            if reason:
                return "stopped", reason
            return ("waiting" if self.until_reached else "interrupted"), ""
        error = end.error
        assert error is not None
        if isinstance(error, DivergedError):
            return "diverged", str(error)
        if isinstance(error, UnmeasuredError):
            return "unmeasured", str(error)
        if isinstance(error, UserError):
            return "failed", str(error)
        text = f"{type(error).__name__}: {error}"
        ray.get(self.board.note_fault.remote(self.job["trial_id"], text))
        raise error

    def _watch(self) -> None:
        while not self.ended.wait(_POLL_S):
            try:
                if ray.get(self.board.is_interrupted.remote(), timeout=60):
                    training = self.training
                    if training is not None:
                        training.received = training.received or STOP
            except RayError:
                os._exit(_ORPHANED)


def trial_config(base: Config, spec: SweepSpec, folder: str, job: Mapping[str, Any]) -> Config:
    """What a trial trains with: its overrides, its seed and its folder over the base.

    Raises:
        UserError: an impossible combination.
    """
    values = dict(job["overrides"]) | {
        "seed": job["seed"],
        "run.dir": trial_folder(folder, job["trial_id"]),
    }
    if spec.algorithm == "pbt":  # a parent may be a whole generation ahead of who copies it
        interval = spec.perturbation_steps or (boundaries(spec) or [1])[0]
        keep = 2 * -(-interval // base.checkpoint.interval_steps) + 3
        values["checkpoint.keep"] = max(base.checkpoint.keep, keep)
    return with_values(base, values)
