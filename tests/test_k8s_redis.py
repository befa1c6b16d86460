"""The head of the cluster that stays keeps its state in Redis, as the overlay sets both up: only
with a certificate, with no credential in an argument, and over the loss of the head."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.k8s_mutation import cluster, container
from tests.k8s_render import Document, render
from tests.object_servers import free_port
from tests.ray_heads import ray_head
from tests.tiny import REPOSITORY

pytestmark = pytest.mark.ray

SERVER = shutil.which("redis-server")
KEEP = """
import ray, sys
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
ray.init(log_to_driver=False)
if sys.argv[1] == "put":
    _internal_kv_put("kept", "the state of a head")
print(_internal_kv_get("kept"))
"""


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return render("cluster", tmp_path_factory.mktemp("rendered"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the page's own commands."""
    folder = tmp_path_factory.mktemp("certificates")
    page = (REPOSITORY / "k8s/README.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"^umask 077; curve=.*?^done$", page, re.M | re.S)
    (folder / "commands").write_text(commands)
    subprocess.run(["bash", "-e", "commands"], cwd=folder, check=True, capture_output=True)
    for name in ("server", "client"):  # as Secrets are mounted
        mounted = folder / name
        mounted.mkdir()
        for source, target in ((f"{name}.crt", "tls.crt"), (f"{name}.key", "tls.key")):
            shutil.copy(folder / source, mounted / target)
        shutil.copy(folder / "ca.crt", mounted / "ca.crt")
    return folder


@contextlib.contextmanager
def redis(overlay: list[Document], certificates: Path, folder: Path) -> Iterator[int]:
    """The overlay's Redis with its arguments, but for paths and the port."""
    if SERVER is None:
        pytest.skip("redis-server is not installed (Debian: redis-server)")
    port = free_port()
    words = [*container(overlay, "redis")["args"], "--bind 127.0.0.1"]
    replaced = {"/data": str(folder), "/tls/": f"{certificates}/server/", " 6379": f" {port}"}
    for old, new in replaced.items():
        words = [word.replace(old, new) for word in words]
    with subprocess.Popen([SERVER, *words], stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 20
            while not _listens(server) and time.monotonic() < deadline:
                time.sleep(0.1)
            yield port
        finally:
            server.kill()


def _listens(server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, "Redis does not take the overlay's arguments"
    return bool(psutil.Process(server.pid).net_connections())


def head_variables(overlay: list[Document], certificates: Path, port: int) -> dict[str, str]:
    """What the overlay and KubeRay set for a head."""
    address = cluster(overlay)["gcsFaultToleranceOptions"]["redisAddress"]
    given = {each["name"]: each.get("value", "") for each in container(overlay, "head")["env"]}
    own = {name: value for name, value in given.items() if "REDIS" in name}
    assert len(own) == 3 and not any("PASSWORD" in name for name in given)
    return {
        "RAY_REDIS_ADDRESS": address.replace("redis:6379", f"127.0.0.1:{port}"),
        "RAY_external_storage_namespace": "distgan",
        **{
            name: value.replace("/redis/", f"{certificates}/client/") for name, value in own.items()
        },
    }


def ask(environment: Mapping[str, str], what: str) -> str:
    command = [sys.executable, "-c", KEEP, what]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def arguments_of_ray() -> str:
    """Of all processes here, as any of them can see."""
    found: list[Any] = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    return " ".join(" ".join(words) for words in found if words)


def test_a_new_head_takes_up_the_state_and_no_argument_holds_a_credential(
    overlay: list[Document], certificates: Path, tmp_path: Path
) -> None:
    with redis(overlay, certificates, tmp_path) as port:
        variables = head_variables(overlay, certificates, port)
        with ray_head(1, variables=variables) as environment:
            assert "the state of a head" in ask(environment, "put")
            seen = arguments_of_ray()
            assert f"--redis_port={port}" in seen and "redis_password" not in seen
        with ray_head(1, variables=variables) as environment:  # the first one was killed
            assert "the state of a head" in ask(environment, "get")
        with ray_head(1) as environment:
            assert "the state of a head" not in ask(environment, "get")


def test_redis_serves_nobody_without_a_certificate(
    overlay: list[Document], certificates: Path, tmp_path: Path
) -> None:
    client = shutil.which("redis-cli")
    if client is None:
        pytest.skip("redis-cli is not installed (Debian: redis-tools)")
    own = certificates / "client"
    with redis(overlay, certificates, tmp_path) as port:
        clear = [client, "-p", str(port), "ping"]
        unknown = [*clear[:-1], "--tls", "--cacert", str(own / "ca.crt"), "ping"]
        known = [*unknown[:-1], "--cert", str(own / "tls.crt"), "--key", str(own / "tls.key")]
        assert "PONG" in _said([*known, "ping"])
        assert "PONG" not in _said(unknown) and "PONG" not in _said(clear)


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout
