"""Functions on ranks of their own: every end of a rank is told, and no process is left behind."""

import ast
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.ranks import run_on_ranks
from tests.namespaces import UNSHARE, require_namespaces
from tests.process_view import listeners
from tests.tiny import REPOSITORY, one_thread

pytestmark = pytest.mark.timeout(120)


def wait_for_ever(folder: str) -> None:
    """On a rank, whose process number it leaves in the folder."""
    started = Path(folder, f"{os.environ['RANK']}.tmp")
    started.write_text(str(os.getpid()))
    started.rename(started.with_suffix(".pid"))
    time.sleep(3600)


def end_badly(how: str) -> str:
    """On rank 1; the others wait for it."""
    if os.environ["RANK"] == "0":
        time.sleep(3600)
    if how == "raise":
        raise ValueError("no such clip")
    os.kill(os.getpid(), signal.SIGKILL)
    return "unreachable"


def listen() -> list[bool]:
    """On a rank, once it is connected: whether each port that it has open is on loopback."""
    torch.distributed.barrier()
    return [listener.is_loopback for listener in listeners([os.getpid()])]


def test_ranks_listen_on_loopback_only() -> None:
    """Also where this machine's name stands for another of its addresses, as on most."""
    require_namespaces()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of nobody, and nothing is sent
        except OSError as error:
            pytest.skip(f"no address but loopback: {error}")
        address = probe.getsockname()[0]
    program = (
        "import socket\n"
        "from cluster.ranks import run_on_ranks\n"
        "from tests.test_run_on_ranks import listen\n"
        f"socket.sethostname({address!r})\n"
        "print(run_on_ranks(listen, (), world_size=2))\n"
    )
    done = subprocess.run(
        [*UNSHARE, "--uts", sys.executable, "-c", program],
        cwd=REPOSITORY, env=one_thread(), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    of_ranks = ast.literal_eval(done.stdout.splitlines()[-1])
    assert all(of_ranks) and all(itertools.chain(*of_ranks))


@pytest.mark.parametrize(
    ("how", "message"),
    [("raise", r"(?s)rank 1 failed:.*no such clip"), ("die", "rank 1 ended without a result")],
)
def test_the_first_bad_end_ends_all_and_names_the_rank(how: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run_on_ranks(end_badly, (how,), world_size=2)


def test_ranks_that_take_too_long_are_ended(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in time"):
        run_on_ranks(wait_for_ever, (str(tmp_path),), world_size=2, timeout_s=20)
    for file in tmp_path.glob("*.pid"):
        assert not is_running(int(file.read_text()))


def test_ranks_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Also by a signal that leaves it no time to end them."""
    program = (
        "from cluster.ranks import run_on_ranks\n"
        "from tests.test_run_on_ranks import wait_for_ever\n"
        f"run_on_ranks(wait_for_ever, ({str(tmp_path)!r},), world_size=2)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, env=one_thread())
    try:
        until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    finally:
        parent.kill()
        parent.wait()
    ranks = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
    until(lambda: not any(map(is_running, ranks)))


def until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
