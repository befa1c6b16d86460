"""Clusters: nothing answers without the token, and local ones listen on loopback only."""

import json
import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.process_view import Listener, listeners, processes_with
from tests.tiny import REPOSITORY, one_thread

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

MARK = "DISTGAN_TEST_MARK"
PARTS = ("gcs_server", "raylet", "dashboard.py", "DashboardAgent", "RuntimeEnvAgent", "ray::IDLE")

# (method, path, body) of Ray's dashboard and its API for jobs, 2.60.
ENDPOINTS = (
    ("GET", "/", None),
    ("GET", "/api/version", None),
    ("GET", "/api/jobs/", None),
    ("POST", "/api/jobs/", {"entrypoint": "id"}),
    ("GET", "/api/jobs/x/logs", None),
    ("POST", "/api/jobs/x/stop", {}),
    ("DELETE", "/api/jobs/x", None),
    ("GET", "/api/packages/gcs/x.zip", None),
    ("PUT", "/api/packages/gcs/x.zip", {}),
    ("GET", "/nodes?view=summary", None),
    ("GET", "/api/v0/actors", None),
    ("GET", "/api/v0/logs", None),
    ("GET", "/api/cluster_status", None),
    ("GET", "/api/snapshot", None),
    ("GET", "/worker/traceback?pid=1", None),
    ("GET", "/api/serve/applications/", None),
    ("GET", "/api/train/v2/runs/v1", None),
)
OPEN = {"/"}
"""The page itself: text and scripts that are the same on every cluster, without a word of it."""


def answer(url: str, method: str, body: object, token: str | None) -> int:
    """The status of one request."""
    request = urllib.request.Request(
        url, method=method, data=None if body is None else json.dumps(body).encode()
    )
    request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def check_doors(dashboard: str, token: str) -> None:
    """Each endpoint refuses who has no token (401) or another one (403); the right one passes."""
    assert answer(f"{dashboard}/api/version", "GET", None, token) == 200
    assert answer(f"{dashboard}/api/jobs/", "GET", None, token) == 200
    closed = [endpoint for endpoint in ENDPOINTS if endpoint[1] not in OPEN]
    assert len(closed) >= 8
    for method, path, body in closed:
        for wrong in (None, "0" * 64, token[:-1]):
            status = answer(dashboard + path, method, body, wrong)
            assert status in (401, 403), (method, path, wrong, status)


@pytest.fixture(scope="module")
def private() -> Iterator[dict[str, Any]]:
    """The cluster that the project starts where `RAY_ADDRESS` names none."""
    mark = uuid.uuid4().hex
    environment = {n: v for n, v in one_thread().items() if not n.startswith("RAY_")} | {MARK: mark}
    command = [sys.executable, "-m", "tests.private_cluster"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            yield facts | {"mark": mark}
            process.communicate("", timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()
    wait_until(lambda: not processes_with(MARK, mark), "processes of the cluster outlive it")


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def test_a_private_cluster_refuses_who_has_not_its_token(private: dict[str, Any]) -> None:
    check_doors(f"http://{private['dashboard']}", Path(private["token"]).read_text())


def test_a_private_cluster_s_token_is_its_owner_s_alone(private: dict[str, Any]) -> None:
    token = Path(private["token"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert token.stat().st_uid == os.geteuid()


def test_a_private_cluster_listens_on_loopback_only(private: dict[str, Any]) -> None:
    assert private["node"] == "127.0.0.1"
    found: set[Listener] = set()

    def all_are_up() -> bool:
        found.update(listeners(processes_with(MARK, private["mark"])))
        programs = " ".join(listener.program for listener in found)
        return all(part in programs for part in PARTS)

    wait_until(all_are_up, f"not all of {PARTS} listen")
    assert [listener for listener in found if not listener.is_loopback] == []


def test_its_other_http_servers_do_nothing_without_the_token(private: dict[str, Any]) -> None:
    """The agents' ports: closed to what is no Ray process, or nothing but counters."""
    dashboard = int(private["dashboard"].rpartition(":")[2])  # whose page answers any path
    servers = listeners(processes_with(MARK, private["mark"]))
    for listener in (server for server in servers if server.port != dashboard):
        for method, path, body in (("POST", "/api/job_agent/jobs/", {"entrypoint": "id"}),
                                   ("GET", "/api/job_agent/jobs/x/logs", None)):  # fmt: skip
            url = f"http://127.0.0.1:{listener.port}{path}"
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(url, method=method, data=data)
            request.add_header("Content-Type", "application/json")
            try:
                with urllib.request.urlopen(request, timeout=20) as response:
                    assert method == "GET" and response.read(6) == b"# HELP", (listener, path)
            except urllib.error.HTTPError as error:
                assert error.code in (400, 401, 403, 404, 405), (listener, path, error.code)
            except (OSError, HTTPException):
                pass  # speaks no HTTP


def test_a_documented_head_refuses_who_has_not_its_token(head: dict[str, str]) -> None:
    check_doors(head["RAY_API_SERVER_ADDRESS"], Path(head["RAY_AUTH_TOKEN_PATH"]).read_text())
