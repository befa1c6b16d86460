"""A machine that Ray drains, as a cloud takes it back or its pod shall end: nothing is lost."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from distgan.checkpoint import checkpoint_folder, committed_steps
from distgan.metrics.writer import read_metrics
from distgan.storage import list_names
from tests.cluster_runs import arguments, wait_until
from tests.k8s_hooks import hooks_of_pods
from tests.namespaces import UNSHARE, require_namespaces
from tests.processes import running
from tests.ray_heads import ray_head, ray_node
from tests.tiny import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

OTHER_MACHINE = """
import time
import ray
ray.init(log_to_driver=False)
while len(nodes := [node for node in ray.nodes() if node["Alive"]]) < 2:
    time.sleep(0.1)
print(*(n["NodeID"] for n in nodes if "node:__internal_head__" not in n["Resources"]))
"""


def other_machine(head: dict[str, str]) -> str:
    """Its id, as soon as it is there."""
    command = [sys.executable, "-c", OTHER_MACHINE]
    told = subprocess.run(command, env=head, capture_output=True, text=True, timeout=60, check=True)
    return told.stdout.split()[-1]


@contextlib.contextmanager
def drained_machine(head: dict[str, str]) -> Iterator[Callable[[], None]]:
    """Gives what has Ray drain it, with a minute left."""
    ray = str(Path(sys.executable).with_name("ray"))
    reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken back"]

    def drain() -> None:
        node = f"--node-id={other_machine(head)}"
        subprocess.run(
            [ray, "drain-node", node, "--deadline-remaining-seconds=60", *reason],
            env=head, capture_output=True, timeout=60, check=True,
        )  # fmt: skip

    with ray_node(head):
        yield drain


@contextlib.contextmanager
def pod(head: dict[str, str], hook: str, folder: Path) -> Iterator[Callable[[], None]]:
    """Gives what runs a pod's hook among the processes of its node; `over` is there afterwards."""
    script = f"""
        "$@" &
        until [ -e {folder}/end ]; do sleep 0.1; done
        {hook}
        touch {folder}/over
        wait
    """

    with ray_node(head, within=[*UNSHARE, "/bin/bash", "-c", script, "pod"]):
        yield (folder / "end").touch


def leaves_with_a_checkpoint(
    head: dict[str, str],
    machine: AbstractContextManager[Callable[[], None]],
    data: str,
    run: Path,
    over: Callable[[], bool] = lambda: True,
) -> None:
    """Of two workers one stays, and goes on from the step of the checkpoint.

    Args:
        machine: of the other; gives what tells it to go.
        over: whether it may go, which must be soon after the run has left it.
    """
    more = ("cluster.num_workers=2", "cluster.min_workers=1", "train.max_steps=100000",
            "checkpoint.interval_steps=100000")  # fmt: skip
    command = [sys.executable, str(REPOSITORY / "launch.py"), *arguments(data, run, *more)]

    def steps() -> list[float]:
        path = run / "metrics.jsonl"
        return [line["step"] for line in read_metrics(str(path))] if path.exists() else []

    def ranks_of(step: int) -> int:
        folder = checkpoint_folder(str(run), step)
        return sum(name.endswith(".safetensors") for name in list_names(folder))

    with machine as ends:
        other_machine(head)
        with running(command, head, lambda: len(steps()) > 5, timeout_s=120) as process:
            ends()
            wait_until(lambda: bool(committed_steps(str(run))), 60, process)
            (left_at,) = committed_steps(str(run))
            wait_until(lambda: steps()[-1] > left_at + 5, 120, process)
            wait_until(over, 20, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
    assert committed_steps(str(run)) == [left_at, ended_at := committed_steps(str(run))[-1]]
    assert (ranks_of(left_at), ranks_of(ended_at)) == (2, 1)
    assert steps() == list(range(1, ended_at + 1))


def test_a_run_leaves_a_machine_that_is_about_to_go_with_a_checkpoint(
    tiny_data: str, tmp_path: Path
) -> None:
    """And goes on from that very step on what stays."""
    with ray_head(num_cpus=1) as head:
        leaves_with_a_checkpoint(head, drained_machine(head), tiny_data, tmp_path / "run")


def test_a_run_leaves_a_pod_that_is_about_to_end_with_a_checkpoint(
    tiny_data: str, tmp_path: Path
) -> None:
    """By its preStop hook, which is over soon after."""
    require_namespaces()
    hook = hooks_of_pods(tmp_path)["workers"]
    with ray_head(num_cpus=1) as head:
        machine, over = pod(head, hook, tmp_path), (tmp_path / "over").exists
        leaves_with_a_checkpoint(head, machine, tiny_data, tmp_path / "run", over)
