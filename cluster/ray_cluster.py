"""The Ray cluster that work runs on: the one that RAY_ADDRESS names, or one of this machine.

A cluster that is started here ends with the work. It asks for a token, in a file of its own that
only this user can read, never the user's own token.
"""

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

from distgan.errors import UserError

_KNOCK_TIMEOUT_S = 20.0
_OBJECT_STORE_BYTES = 256 * 2**20  # what travels through Ray is small; data and weights do not


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster of RAY_ADDRESS (also set inside a submitted job), or starts one here.

    Raises:
        UserError: the cluster can't be reached, refuses this user, or has other versions.
    """
    if ray.is_initialized():  # the caller's own
        yield
    elif os.environ.get("RAY_ADDRESS"):
        with _joined(os.environ["RAY_ADDRESS"]):
            yield
    else:
        with _started():
            yield


def nodes_elsewhere() -> list[str]:
    """Addresses of the alive nodes that are not on this machine."""
    own = ray.util.get_node_ip_address()
    addresses = {n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
    return sorted(addresses - {own})


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    try:
        _knock(address)
        ray.init(address=address, logging_level=logging.WARNING)
    except AuthenticationError as error:
        raise UserError(
            f"the Ray cluster at RAY_ADDRESS={address} asks for its token: set RAY_AUTH_MODE=token "
            "and RAY_AUTH_TOKEN_PATH to the file that holds it"
        ) from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise UserError(
            f"the Ray cluster at RAY_ADDRESS={address} has other versions: {_first_line(error)}; "
            "install the same versions of Ray and Python here and there"
        ) from error
    except (OSError, RayError, ValueError) as error:
        raise UserError(
            f"the Ray cluster at RAY_ADDRESS={address} can't be reached: {_first_line(error)}; "
            "start it, correct the address, or unset RAY_ADDRESS to start one here"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _started() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="dg-", dir="/tmp"))  # sockets' paths must stay short
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    try:
        _set_environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)})
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            object_store_memory=_OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
            _temp_dir=str(folder / "ray"),
        )
        yield
    finally:
        ray.shutdown()
        _set_environment(before)
        shutil.rmtree(folder, ignore_errors=True)


def _knock(address: str) -> None:
    """Raises OSError if nobody listens there; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_TIMEOUT_S).close()


def _set_environment(values: dict[str, str | None] | dict[str, str]) -> None:
    """Ray reads how to authenticate once, when it is imported; this makes it look again."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
