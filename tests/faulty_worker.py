"""A training worker in which faults come at an exact place; see `fault_program`."""

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import train as ray_train

from cluster import worker
from cluster.rendezvous import GuardedTorchConfig, _GuardedBackend
from distgan.adversarial_step import AdversarialStep
from distgan.saving import Saver
from distgan.trainer import Trainer


def _raise() -> None:
    raise RuntimeError("a fault that a test asked for")


def _hold_interpreter() -> None:
    """In a call that goes on after a signal, other than C's sleep: a look must not wake it."""
    ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)


def _signal(title: str, number: signal.Signals) -> None:
    """To a process of this run's: a child of the same raylet."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = (folder / "cmdline").read_bytes().decode()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if program.startswith(title) and int(parent) == os.getppid():
                os.kill(int(folder.name), number)
                return
    raise AssertionError(f"no {title} found")


def _kill_loaders() -> None:
    loaders = multiprocessing.active_children()
    assert loaders, "this worker has no loader"
    for loader in loaders:
        loader.kill()


_DRIVER = "DISTGAN_TEST_DRIVER"
"""Variable with the process that started the run."""

FAULTS: dict[str, Callable[[], Any]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGSTOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exception": _raise,
    "hang": lambda: time.sleep(1000),
    "board killed": lambda: _signal("ray::Board", signal.SIGKILL),
    "board stopped": lambda: _signal("ray::Board", signal.SIGSTOP),
    "controller killed": lambda: _signal("ray::TrainController", signal.SIGKILL),
    "controller stopped": lambda: _signal("ray::TrainController", signal.SIGSTOP),
    "held interpreter": _hold_interpreter,
    "driver killed": lambda: os.kill(int(os.environ[_DRIVER]), signal.SIGKILL),
    "loader killed": _kill_loaders,  # with data.num_workers=1, once a batch was read
}
NAN = "nan"
"""A further kind, for the places that return a loss: it is not finite then."""
PLACES: dict[str, tuple[Any, str]] = {
    "start": (worker, "Link"),  # before the board is told of the worker; its step is -1
    "data": (Trainer, "next_batch"),
    "discriminator": (AdversarialStep, "discriminator_loss"),
    "generator": (AdversarialStep, "generator_loss"),
    "save": (Saver, "_write"),
    "commit": (Saver, "_commit"),
}

GROUP = "group"
"""A further place, for what ends a worker: when all have a process and their group is not made."""


def train_on_rank(task: dict[str, Any]) -> None:
    """Trains as `cluster.worker.train_on_rank`, with the faults in it."""
    os.environ[_DRIVER] = str(task["driver"])
    _install(json.loads(task["faults"]), ray_train.get_context().get_world_rank())
    worker.train_on_rank(task)


def _install(faults: list[dict[str, Any]], rank: int) -> None:
    step = [-1]
    next_batch = Trainer.next_batch

    def noting_step(self: Trainer, *arguments: Any) -> Any:
        if step[0] < 0 and rank == 0:
            _note(Path(faults[0]["starts"]), self.step)
        step[0] = self.step + 1
        return next_batch(self, *arguments)

    Trainer.next_batch = noting_step  # type: ignore[method-assign]
    for fault in faults:
        if fault["rank"] == rank and fault["place"] != GROUP:
            owner, name = PLACES[fault["place"]]
            setattr(owner, name, _with_fault(getattr(owner, name), fault, step))


def _with_fault(
    original: Callable[..., Any], fault: dict[str, Any], step: list[int]
) -> Callable[..., Any]:
    def faulty(self: Any, *arguments: Any) -> Any:
        at = step[0] + (1 if fault["place"] == "data" else 0)  # not yet noted
        if at < fault["step"] or not _comes(fault, at):
            return original(self, *arguments)
        if fault["kind"] == NAN:
            loss, metrics = original(self, *arguments)
            return loss * float("nan"), metrics
        FAULTS[fault["kind"]]()
        return original(self, *arguments)

    return faulty


def _comes(fault: dict[str, Any], step: int) -> bool:
    """Notes it, unless it has come as often as it shall."""
    marker = Path(fault["marker"])
    if len(noted(marker)) >= fault.get("times", 1):
        return False
    _note(marker, step)
    return True


@dataclass(frozen=True)
class Noted:
    """A fault that came, or the start of an attempt."""

    seconds: float
    """When, by this machine's clock."""
    step: int
    """That was being made; of a start, the one that it goes on from."""


def noted(path: Path) -> list[Noted]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [Noted(float(line.split()[0]), int(line.split()[1])) for line in lines]


def _note(path: Path, step: int) -> None:
    with path.open("a") as file:
        file.write(f"{time.time()} {step}\n")


def _come(fault: dict[str, Any]) -> None:
    if _comes(fault, -1):
        FAULTS[fault["kind"]]()


class _FaultyBackend(_GuardedBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        for fault in json.loads(backend_config.faults):
            if fault["place"] == GROUP:
                worker_group.execute_single(fault["rank"], _come, fault)
        super().on_start(worker_group, backend_config)


@dataclass(kw_only=True)
class FaultyTorchConfig(GuardedTorchConfig):
    """With the faults that come before the training."""

    faults: str

    @property
    def backend_cls(self) -> type[_GuardedBackend]:
        return _FaultyBackend
