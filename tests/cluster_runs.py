"""Whole runs of two workers by the command line, and what is compared of them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distgan.checkpoint import Checkpoint, load_newest
from distgan.metrics.writer import read_metrics
from tests.checkpoints import kept_state
from tests.tiny import REPOSITORY, TINY

TIMED = ("time/", "throughput/", "memory/")
SHOWN = ("log.sample_interval_steps=6", "log.proxy_interval_steps=6", "log.proxy_clips=16")


@dataclass(frozen=True)
class CalmJob:
    """A run that nothing disturbed, made by a job."""

    run: Path
    done: subprocess.CompletedProcess[str]
    """What `submit` printed and returned."""


def make_calm_job(head: dict[str, str], data: str, run: Path) -> CalmJob:
    inner = arguments(data, run, "cluster.num_workers=2", *SHOWN)
    return CalmJob(run, run_program(["launch.py", "submit", "--", *inner], head))


def arguments(data: str, run: Path, *more: str) -> list[str]:
    return ["train", *TINY, f"data.shards={data}", f"run.dir={run}", *more]


def run_program(
    command: list[str], environment: dict[str, str], code: int = 0, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Runs to its end from the repository's root; fails unless it exits with `code`."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def train(
    head: dict[str, str], data: str, run: Path, *more: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    command = ["launch.py", *arguments(data, run, "cluster.num_workers=2", *more)]
    return run_program(command, head, code)


def without_cluster(environment: Mapping[str, str]) -> dict[str, str]:
    """In which programs join no cluster, but start their own."""
    return {name: value for name, value in environment.items() if not name.startswith("RAY_")}


def train_with_faults(
    head: dict[str, str], data: str, run: Path, faults: list[dict[str, Any]], *more: str,
    code: int = 0, timeout_s: float = 240,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Fault number i leaves the file RUN-marker-i, and each attempt a line in RUN-starts."""
    marked = [
        fault | {"marker": f"{run}-marker-{i}", "starts": f"{run}-starts"}
        for i, fault in enumerate(faults)
    ]
    program = ["-m", "tests.fault_program", json.dumps(marked)]
    return run_program(
        [*program, *arguments(data, run, "cluster.num_workers=2", *more)], head, code, timeout_s
    )


def newest_of(run: Path) -> Checkpoint:
    checkpoint, problems = load_newest(str(run))
    assert checkpoint is not None and not problems
    return checkpoint


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return newest_of(run).tensors


def logged(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock measured."""
    lines = read_metrics(str(run / "metrics.jsonl"))
    return [{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Equal in every bit and counter of the last checkpoint and in every logged number."""
    newest, others = newest_of(one), newest_of(other)
    ours, theirs = newest.tensors, others.tensors
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert kept_state(newest) == kept_state(others)
    assert logged(one) == logged(other)


def wait_until(
    ready: Callable[[], bool], timeout_s: float, process: subprocess.Popen[str] | None = None
) -> None:
    """Fails if it takes longer, or if the process ends before."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert process is None or process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it did not get there"
        time.sleep(0.1)
