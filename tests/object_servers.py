"""Real S3 servers on free ports of this machine, for as long as a context lasts."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distgan import storage
from distgan.config import StorageConfig

KEY, SECRET = "test-key-id", "test-secret-value-31415926"
BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
}
OPTIONS = ("storage.checksums=when_required", "storage.addressing=path")


@contextlib.contextmanager
def rclone_server(
    root: Path, key: str = KEY, secret: str = SECRET, *, read_only: bool = False
) -> Iterator[int]:
    """rclone's S3 server (it checks signatures) over a folder; buckets are its folders."""
    (root / BUCKET).mkdir(parents=True, exist_ok=True)
    port = free_port()
    program = Path(sys.executable).parent / "rclone"
    command = [
        str(program), "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{port}",
        "--auth-key", f"{key},{secret}", *(["--read-only"] if read_only else []), str(root),
    ]  # fmt: skip
    with _running(command, port):
        yield port


@contextlib.contextmanager
def moto_server() -> Iterator[int]:
    """moto's S3 server; it knows no bucket yet."""
    port = free_port()
    with _running([str(Path(sys.executable).parent / "moto_server"), "-p", str(port)], port):
        yield port


@contextlib.contextmanager
def with_options(options: StorageConfig) -> Iterator[None]:
    """This process talks to object storage with these options, and with credentials."""
    before = storage.options()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        storage.configure(options)
        try:
            yield
        finally:
            storage.configure(before)


def options_for(port: int, **values: object) -> StorageConfig:
    """Options for a server of this file that fail fast."""
    defaults = {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "checksums": "when_required",
        "addressing": "path",
        "region": "us-east-1",
        "retry_seconds": 20.0,
        "connect_timeout_seconds": 2.0,
        "read_timeout_seconds": 1.0,
        "part_megabytes": 5.25,
    }
    return StorageConfig.model_validate(defaults | values)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _answers(port):
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{command[0]} does not answer"
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
