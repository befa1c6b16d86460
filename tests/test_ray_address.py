"""What is no Ray cluster is told within seconds: Ray itself would try for minutes."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from cluster import ray_cluster
from distgan.errors import UserError

pytestmark = pytest.mark.timeout(100)


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    """Such as Ray's own dashboard."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def other_grpc_server() -> Iterator[int]:
    """Such as those of Ray's that are no head."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@pytest.mark.parametrize("server", [web_server, silent_server, other_grpc_server])
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_what_is_no_head_is_refused(
    server: Callable[[], contextlib.AbstractContextManager[int]], scheme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_cluster, "_KNOCK_TIMEOUT_S", 2.0)
    with server() as port:
        address = f"{scheme}127.0.0.1:{port}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError) as raised, ray_cluster.connected():
            pass
    told = str(raised.value)
    assert told.startswith(f"the Ray cluster at RAY_ADDRESS={address} can't be reached: ")
    assert "no head of a Ray cluster" in told and "not the dashboard's" in told
    assert "unset RAY_ADDRESS" in told
