"""A worker that loses the command ends itself, so that it writes no further to the run."""

import subprocess
import sys

import pytest

from cluster.link import ORPHANED
from tests.tiny import REPOSITORY

pytestmark = pytest.mark.ray

# In a process of its own, which is the one that ends.
PROGRAM = """
import time
import ray
from cluster.board import make_board
from cluster.link import Link
from cluster.ray_cluster import connected

with connected():
    board = make_board()
    with Link(board, 0):
        time.sleep(1.5)  # in touch
        print("alive", len(ray.get(board.read.remote()).ranks), flush=True)
        ray.kill(board)
        time.sleep(60)
        print("still there", flush=True)
"""


def test_a_worker_whose_board_is_gone_ends_itself(head: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY, env=head, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["alive", "1"], done.stderr
    assert done.returncode == ORPHANED
