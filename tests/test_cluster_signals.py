"""Signals to a run with a cluster of its own, as programs send them that run other programs."""

import os
import signal
import sys
from pathlib import Path

import pytest

from distgan.checkpoint import committed_steps
from distgan.metrics.writer import read_metrics
from tests.cluster_runs import arguments, without_cluster
from tests.processes import Descendants, running
from tests.tiny import one_thread

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

_GRACE_S = 50
"""Below the 61 s after which Ray gives up on servers that took the signal, too."""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_to_the_whole_process_group_leaves_a_checkpoint(
    number: signal.Signals, code: int, tiny_data: str, tmp_path: Path
) -> None:
    """GNU timeout signals the group of what it runs, and a terminal does."""
    run = tmp_path / "run"
    command = arguments(tiny_data, run, "cluster.num_workers=2", "train.max_steps=100000",
                        "checkpoint.interval_steps=20")  # fmt: skip
    own = without_cluster(one_thread())

    def under_way() -> bool:
        return bool(committed_steps(str(run)))

    with (
        Descendants() as started,
        running(
            [sys.executable, "launch.py", *command], own | started.mark, under_way, timeout_s=120
        ) as process,
    ):
        os.killpg(process.pid, number)
        assert process.wait(_GRACE_S) == code
        started.all_end(within_s=10)
    logged = [line["step"] for line in read_metrics(str(run / "metrics.jsonl"))]
    assert committed_steps(str(run))[-1] == logged[-1]
