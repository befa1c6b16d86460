"""Runs on a cluster of two CPUs of which somebody else holds one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distgan.checkpoint import committed_steps
from tests.cluster_runs import train

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

_HOLD = """
import sys, ray
ray.init(log_to_driver=False)
holder = ray.remote(num_cpus=1)(type("Holder", (), {"ready": lambda self: True})).remote()
ray.get(holder.ready.remote())
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def busy_head(head: dict[str, str]) -> Iterator[dict[str, str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD],
        env=head, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        try:
            assert other.stdout is not None
            assert other.stdout.readline().strip() == "holding"
            yield head
        finally:
            other.kill()


def test_a_run_that_may_shrink_takes_what_is_free(
    busy_head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    """And stays so: what others hold is no reason to grow."""
    more = ("cluster.min_workers=1", "cluster.resize_seconds=0.5", "train.max_steps=100")
    done = train(busy_head, tiny_data, tmp_path / "run", *more)
    told = done.stdout + done.stderr
    assert "1 of them free" in told and "workers: rank 0 (pid" in told
    assert "rank 1" not in told and "has grown" not in told and "failed" not in told
    assert committed_steps(str(tmp_path / "run"))[-1] == 100


def test_one_that_may_not_is_refused(
    busy_head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    done = train(busy_head, tiny_data, tmp_path / "run", code=2)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("launch.py train: cluster.num_workers=2 needs at least 2 devices")
    assert "the cluster has 2, 1 of them free" in last
    assert "Traceback" not in done.stderr
