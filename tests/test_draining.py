"""A machine that Ray drains, as a cloud does with one it takes back: nothing is lost with it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distgan.checkpoint import checkpoint_folder, committed_steps
from distgan.metrics.writer import read_metrics
from distgan.storage import list_names
from tests.cluster_runs import arguments, wait_until
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


def drain(node_id: str, head: dict[str, str]) -> None:
    """With a minute left."""
    ray = str(Path(sys.executable).with_name("ray"))
    reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken back"]
    subprocess.run(
        [ray, "drain-node", f"--node-id={node_id}", "--deadline-remaining-seconds=60", *reason],
        env=head, capture_output=True, timeout=60, check=True,
    )  # fmt: skip


def test_a_run_leaves_a_machine_that_is_about_to_go_with_a_checkpoint(
    tiny_data: str, tmp_path: Path
) -> None:
    """And goes on from that very step on what stays."""
    run = tmp_path / "run"
    more = ("cluster.num_workers=2", "cluster.min_workers=1", "train.max_steps=100000",
            "checkpoint.interval_steps=100000")  # fmt: skip
    command = [sys.executable, str(REPOSITORY / "launch.py"), *arguments(tiny_data, run, *more)]

    def steps() -> list[float]:
        path = run / "metrics.jsonl"
        return [line["step"] for line in read_metrics(str(path))] if path.exists() else []

    def ranks_of(step: int) -> int:
        folder = checkpoint_folder(str(run), step)
        return sum(name.endswith(".safetensors") for name in list_names(folder))

    with ray_head(num_cpus=1) as head, ray_node(head):
        node_id = other_machine(head)
        with running(command, head, lambda: len(steps()) > 5, timeout_s=120) as process:
            drain(node_id, head)
            wait_until(lambda: bool(committed_steps(str(run))), 60, process)
            (left_at,) = committed_steps(str(run))
            wait_until(lambda: steps()[-1] > left_at + 5, 120, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
    assert committed_steps(str(run)) == [left_at, ended_at := committed_steps(str(run))[-1]]
    assert (ranks_of(left_at), ranks_of(ended_at)) == (2, 1)
    assert steps() == list(range(1, ended_at + 1))
