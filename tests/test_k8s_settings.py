"""What settings do in a pod: identity goes to the identity service alone, mistakes are named."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.k8s_render import SETTINGS, of_kind, render
from tests.tiny import REPOSITORY, one_thread

IDENTITY = "WEB-IDENTITY-TOKEN-CANARY"
KEYS = {"AWS_ACCESS_KEY_ID": "key-id", "AWS_SECRET_ACCESS_KEY": "secret"}


@contextlib.contextmanager
def refusing_server() -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it has heard: first lines with bodies. It refuses all."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            heard.append(f"{self.requestline} {body.decode(errors='replace')}")
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_PUT = do_CONNECT = do_POST

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", heard
        finally:
            server.shutdown()


def train_in_pod(
    tmp_path: Path, more: dict[str, str], **settings: str
) -> subprocess.CompletedProcess[str]:
    """`cpu-smoke`'s entrypoint without its cluster, with the variables of its ConfigMap."""
    documents = render("cpu-smoke", tmp_path, SETTINGS | settings)
    (config_map,) = (
        m for m in of_kind(documents, "ConfigMap") if m["metadata"]["name"] == "settings"
    )
    (job,) = of_kind(documents, "RayJob")
    command = job["spec"]["entrypoint"].replace(
        "config/train.yaml", "k8s/overlays/cpu-smoke/train.yaml"
    )
    own = {name: value for name, value in one_thread().items() if not name.startswith("AWS_")}
    home = tmp_path / "home"
    return subprocess.run(
        [sys.executable, *command.split()[1:], "cluster.num_workers=0", "storage.retry_seconds=1"],
        env={**own, **config_map["data"], **more, "HOME": str(home)},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_storage_server_is_not_sent_the_pods_identity(tmp_path: Path) -> None:
    """As EKS sets it up with IRSA: AWS' identity service is asked, through a proxy here."""
    token = tmp_path / "token"
    token.write_text(IDENTITY)
    with refusing_server() as (storage, at_storage), refusing_server() as (proxy, at_proxy):
        variables = {
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/training",
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
            "HTTPS_PROXY": proxy,
            "NO_PROXY": "127.0.0.1",
        }
        done = train_in_pod(tmp_path, variables, AWS_ENDPOINT_URL_S3=storage)
    assert done.returncode != 0 and IDENTITY not in done.stdout + done.stderr
    assert not [line for line in at_storage if IDENTITY in line]
    assert [line for line in at_proxy if line.startswith("CONNECT sts.")], done.stderr


def test_with_keys_the_storage_server_is_asked(tmp_path: Path) -> None:
    with refusing_server() as (storage, at_storage):
        done = train_in_pod(tmp_path, KEYS, AWS_ENDPOINT_URL_S3=storage)
    assert done.returncode == 2, done.stderr
    assert [line for line in at_storage if "/bucket" in line]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ENDPOINT_URL_S3", "", "AWS_ENDPOINT_URL_S3 is empty"),
        ("BUCKET", "", "names no bucket"),
        ("BUCKET", "s3://bucket", "has an address in an address"),
    ],
)
def test_a_wrong_setting_is_named_when_the_job_starts(
    name: str, value: str, said: str, tmp_path: Path
) -> None:
    done = train_in_pod(tmp_path, KEYS, **{name: value})
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
