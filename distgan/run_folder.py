"""A run's folder: is it new, may this configuration go on in it, has it diverged?"""

import contextlib
import fcntl
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from distgan import storage
from distgan.config import Config
from distgan.config_loading import (
    MOST_YAML_BYTES,
    build_config,
    dump_yaml,
    flatten,
    parse_yaml,
)
from distgan.errors import DivergedError, UserError
from distgan.strict_json import parse_object

CONFIG, DIVERGED, LOCK = "config.yaml", "DIVERGED.json", ".lock"
RAY = "ray"
"""Where Ray keeps its records of the run."""
_CONFIG_REMEDY = "put the file back (each checkpoint's state.json holds it too, under config)"

# Keys that may differ on resume: they change neither the weights' path nor the data's order.
FREE_ON_RESUME = (
    "cluster.", "stop.", "checkpoint.", "log.", "storage.", "prepare.", "run.dir",
    "train.max_steps", "train.device", "data.num_workers", "data.shards",
    "data.shards_in_flight", "data.cache_", "data.max_damaged_fraction", "preset",
)  # fmt: skip


def saved_config(run_dir: str) -> Config | None:
    """The configuration that the run started with; None if there is no run yet."""
    path = storage.join(run_dir, CONFIG)
    if not storage.exists(path):
        return None
    try:
        tree = parse_yaml(storage.read_bytes(path, max_bytes=MOST_YAML_BYTES).decode(), path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: {error}; {_CONFIG_REMEDY}") from error
    missing = [section for section in Config.model_fields if section not in tree]
    if missing:
        raise UserError(f"{path} is damaged: it lacks {', '.join(missing)}; {_CONFIG_REMEDY}")
    return build_config(tree)


def start_or_resume(config: Config) -> Config:
    """The configuration to run with: on resume, answers found at the first start are kept, and
    where its weights came from.

    Raises:
        UserError: the folder holds something else, or a run with another configuration.
        DivergedError: the run in the folder has diverged.
    """
    run_dir = config.run.dir
    saved = saved_config(run_dir)
    if saved is None:
        if storage.is_local(run_dir) and storage.local_path(run_dir).is_file():
            raise UserError(f"run.dir={run_dir} is a file; choose another folder")
        # A first start that was cut short leaves hidden files and Ray's records.
        if any(not name.startswith(".") and name != RAY for name in storage.list_names(run_dir)):
            raise UserError(
                f"run.dir={run_dir} is not empty and holds no run ({CONFIG} is missing); "
                "choose another folder"
            )
        return config
    refuse_if_diverged(run_dir)
    origin = config.run.init_from or saved.run.init_from
    run = config.run.model_copy(update={"init_from": origin})
    resolved = config.model_copy(update={"train": _keep_answers(config, saved), "run": run})
    differing = differing_keys(saved, resolved)
    if differing:
        was, now = flatten(saved), flatten(resolved)
        changes = ", ".join(f"{key} (was {was.get(key)}, now {now.get(key)})" for key in differing)
        raise UserError(
            f"run.dir={run_dir} was made with another configuration: {changes}; take these values "
            "back, or start a new run with another run.dir (run.init_from starts from its weights)"
        )
    return resolved


def differing_keys(saved: Config, config: Config) -> list[str]:
    """Keys whose change would make it another run."""
    was, now = flatten(saved), flatten(config)
    return [
        key
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key) and not key.startswith(FREE_ON_RESUME)
    ]


@contextlib.contextmanager
def alone_in(run_dir: str) -> Iterator[None]:
    """Keeps other processes of this machine from training in the same (local) folder.

    Raises:
        UserError: one is at it.
    """
    if not storage.is_local(run_dir):
        yield
        return
    folder = storage.local_path(run_dir)
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with Path(folder, LOCK).open("w") as file:  # the lock ends with the process, however it ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"run.dir={run_dir}: another process is training there; wait for it, or choose "
                "another folder"
            ) from error
        try:
            yield
        finally:
            if not existed and [child.name for child in folder.iterdir()] == [LOCK]:
                Path(folder, LOCK).unlink()
                folder.rmdir()


def is_held(run_dir: str) -> bool | None:
    """Whether a process of this machine works in the folder; None where that can't be told.

    Looks only. For the blink of it a process that comes is refused the folder.
    """
    if not storage.is_local(run_dir):
        return None
    try:
        with Path(storage.local_path(run_dir), LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except PermissionError:  # another user's
        return None
    return False


def save_config(config: Config) -> None:
    storage.write_bytes(storage.join(config.run.dir, CONFIG), dump_yaml(config).encode())


def mark_diverged(run_dir: str, step: int, reason: str) -> None:
    """Leaves the marker that stops every rerun, so that no scheduler retries blindly."""
    text = json.dumps({"step": step, "reason": reason}, indent=1)
    storage.write_bytes(storage.join(run_dir, DIVERGED), text.encode())


def refuse_if_diverged(run_dir: str) -> None:
    """Raises `DivergedError` if the marker is there."""
    marker = _diverged_marker(run_dir)
    if marker is not None:
        step, reason = marker.get("step", "?"), marker.get("reason", "the marker itself is damaged")
        raise DivergedError(
            f"the run in {run_dir} diverged at step {step}: {reason}. Start a "
            "new run with other settings (a lower learning rate or a higher loss.gamma, say); to "
            "go on from the last checkpoint all the same, delete "
            f"{storage.join(run_dir, DIVERGED)}"
        )


def diverged_step(run_dir: str) -> int:
    """The step at which the run diverged; 0 if it has not, or if that can't be read."""
    step = (_diverged_marker(run_dir) or {}).get("step")
    return step if isinstance(step, int) else 0


def _diverged_marker(run_dir: str) -> dict[str, Any] | None:
    path = storage.join(run_dir, DIVERGED)
    if not storage.exists(path):
        return None
    try:
        return dict(parse_object(storage.read_bytes(path)))
    except ValueError:
        return {}


def _keep_answers(config: Config, saved: Config) -> Any:
    """Questions that the first start answered (auto precision, schedule length) stay answered."""
    kept: dict[str, Any] = {}
    if config.train.precision == "auto":
        kept["precision"] = saved.train.precision
    if config.train.schedule_steps == 0:
        kept["schedule_steps"] = saved.train.schedule_steps
    return config.train.model_copy(update=kept)


class StopSignals:
    """Remembers SIGINT and SIGTERM, so that the loop can end with a checkpoint.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator["StopSignals"]:
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
