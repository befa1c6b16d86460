"""A real Ray cluster of one machine, that tests join by its address."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.tiny import one_thread


@contextlib.contextmanager
def ray_head(
    num_cpus: int = 2,
    *options: str,
    start_in: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[dict[str, str]]:
    """Starts `ray start --head` with token authentication; gives the environment to use it.

    Args:
        options: further ones of `ray start`.
        start_in: where it starts, and so where jobs do that bring no folder of their own.
        variables: more of its environment, and so of its jobs'.
    """
    folder = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))  # sockets' paths must stay short
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(16))
    port, dashboard, agent = _free_ports(3)
    programs = Path(sys.executable).parent  # jobs run the first `python` that the head finds
    environment = {
        **one_thread(),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        **(variables or {}),
    }
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--num-cpus={num_cpus}",
        "--object-store-memory=200000000", f"--temp-dir={folder / 'ray'}",
        "--disable-usage-stats", *options,
    ]  # fmt: skip
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=start_in, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as head,
    ):
        try:
            url = f"http://127.0.0.1:{dashboard}"
            _wait_for(url, head, folder / "log")
            yield environment | {"RAY_API_SERVER_ADDRESS": url}
        finally:
            os.killpg(head.pid, signal.SIGKILL)  # a polite end drains for 30 s
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ray_node(
    head: dict[str, str],
    num_cpus: int = 1,
    *,
    start_in: Path | None = None,
    log: Path = Path(os.devnull),
    within: Sequence[str] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A further machine of the cluster, simulated here; kill its process group to lose it.

    Args:
        within: a command that runs the node's, which is appended.
    """
    (agent,) = _free_ports(1)  # the default is one for the whole machine, and a raylet needs it
    command = [
        *within,
        str(Path(sys.executable).with_name("ray")), "start", "--block",
        f"--address={head['RAY_ADDRESS']}", f"--num-cpus={num_cpus}",
        f"--dashboard-agent-listen-port={agent}",
        "--object-store-memory=100000000", "--disable-usage-stats",
    ]  # fmt: skip
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=start_in, env=head, stdout=output, stderr=output, start_new_session=True
        ) as node,
    ):
        try:
            yield node
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)


def _wait_for(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    """Until the dashboard asks for a token: then all of the head is up."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=2).close()
        except urllib.error.HTTPError as error:
            assert error.code == 401
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no head after 60 s: {log.read_text()}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
