"""Connecting to Ray: to the cluster that `RAY_ADDRESS` names, or to a private one on this machine.

A private cluster listens on the loopback interface only, asks for a token that lies in a folder of
its own (mode 0600; never `~/.ray/auth_token`), and goes with the context that started it.
"""

import contextlib
import functools
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distgan.errors import DistganError, UserError
from distgan.temporary import temporary_folder

_LONGEST_FOLDER = 35
"""Characters: Ray puts sockets below, whose paths must not reach 107."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its workers see the GPUs that we see; no warning
}
_QUIET_LOGS: dict[str, Any] = {"logging_level": logging.ERROR, "configure_logging": False}
_KNOCK_TIMEOUT_S = 20.0
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0 Ray takes 127.0.0.1 as this machine's address, on which all its servers then listen. Asked
for that address by name, it takes the machine's outer one instead."""


@contextlib.contextmanager
def connected(
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    object_store_bytes: int | None = None,
    dashboard: bool = False,
    show_output: bool = False,
) -> Iterator[None]:
    """Ray is usable inside, and left as it was found. Joined clusters are left running.

    If this process is connected already, that connection is used and kept.

    Args:
        num_cpus: of a private cluster, like the next ones; None means what the machine has.
        object_store_bytes: shared memory for Ray's objects; None leaves it to Ray.
        dashboard: Ray Tune needs it to give back the resources of trials that it stops.
        show_output: print here what workers print.

    Raises:
        UserError: the cluster at `RAY_ADDRESS` can't be reached, refuses this user, or has other
            versions.
        DistganError: a private one does not start.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_own_signal_handlers())
        address = os.environ.get("RAY_ADDRESS", "")
        if address:
            stack.enter_context(_environment(_QUIET))
            _join(address, show_output)
        else:
            # Removed after Ray's shutdown; the next start removes it if this process is killed.
            folder = stack.enter_context(temporary_folder(_short_folder()))
            stack.enter_context(_private_settings(folder))
            stack.callback(_shutdown)  # also of half a cluster
            _start(
                log_to_driver=show_output,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=dashboard,
                object_store_memory=object_store_bytes,
                _temp_dir=str(folder / "ray"),
            )
        stack.callback(_shutdown)
        yield


@contextlib.contextmanager
def known_to_helpers() -> Iterator[None]:
    """Ray Train's processes beside the workers find this cluster inside.

    They look for it without being told which; with several on one machine they would fail, and the
    places of an attempt whose controller was killed would stay taken.
    """
    import ray
    from ray.train.v2._internal import constants

    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    try:
        with _environment({"RAY_ADDRESS": ray.get_runtime_context().gcs_address}):
            yield
    finally:
        constants.ENV_VARS_TO_PROPAGATE.discard("RAY_ADDRESS")


def own_address() -> str:
    """The address of the cluster's node that this process is connected to."""
    import ray

    return str(ray.util.get_node_ip_address())


def node_addresses() -> set[str]:
    """The addresses of all machines that are in the cluster now."""
    import ray

    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def num_cluster_cpus() -> int:
    """CPUs that the cluster has in all, busy or not."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def _join(address: str, show_output: bool) -> None:
    import ray
    from ray.exceptions import AuthenticationError, RayError

    what = f"the Ray cluster at RAY_ADDRESS={address}"
    if address.startswith("ray://"):
        raise UserError(
            f"{what} is named by its client port, through which no run can be watched: set "
            "RAY_API_SERVER_ADDRESS to its dashboard and use `launch.py submit -- ...`, or run on "
            "a machine of the cluster with RAY_ADDRESS=HOST:PORT"
        )
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=show_output, **_QUIET_LOGS)
    except AuthenticationError as error:
        raise UserError(
            f"{what} asks for its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the "
            "file that holds it"
        ) from error
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, OSError, RayError) as error:
        text = " ".join(str(error).split())[:300]
        if "Version mismatch" in text:
            raise UserError(
                f"{what} has other versions: {text}; install the same here and there"
            ) from error
        raise UserError(
            f"{what} can't be reached: {text}; start it, correct the address, or unset "
            "RAY_ADDRESS to start one here"
        ) from error


def _knock(address: str) -> None:
    """Raises OSError unless the head of a cluster answers; Ray itself would try for minutes."""
    place = address.rpartition("://")[2]
    host, colon, port = place.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_TIMEOUT_S).close()
        _ask_head(place)


def _ask_head(place: str) -> None:
    """Raises AuthenticationError if a head of Ray refuses this user, of which `ray.init` would only
    say that it can't connect; and OSError if it is none."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
    from ray.exceptions import AuthenticationError

    messages: Any = gcs_service_pb2  # made at import, without types
    with init_grpc_channel(place, options=GLOBAL_GRPC_OPTIONS) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            head.GetClusterId(messages.GetClusterIdRequest(), timeout=_KNOCK_TIMEOUT_S)
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise AuthenticationError("no token, or a wrong one") from error
            raise OSError(
                f"what listens there is no head of a Ray cluster ({code.name}); its address is the "
                "HOST:PORT that `ray start --head` printed, not the dashboard's"
            ) from error


def _start(**options: Any) -> None:
    import ray

    try:
        with _sessions_of_their_own():
            ray.init(address="local", dashboard_host="127.0.0.1", **_QUIET_LOGS, **options)
    except Exception as error:  # Ray raises bare ones, too, where a process of it starts too slowly
        text = " ".join(str(error).split())
        raise DistganError(
            f"can't start a Ray cluster on this machine ({text[:300]}); try again"
        ) from error


@contextlib.contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """Ray's servers start apart from this process's group: a signal to the group, as terminals and
    `timeout` send it, is for the command, which still needs them for its way out. The kernel ends
    them if this process is killed; their agents notice within a minute or so."""
    from ray._private import services

    original = services.ConsolePopen
    services.ConsolePopen = functools.partial(original, start_new_session=True)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = original  # type: ignore[misc]


def _shutdown() -> None:
    import ray

    ray.shutdown()


@contextlib.contextmanager
def _private_settings(folder: Path) -> Iterator[None]:
    """Ray's settings for a private cluster: for this process, and through the environment for all
    that it starts."""
    token = folder / "token"
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    values = {
        **_QUIET,
        _LOOPBACK: "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_AUTH_TOKEN": None,  # it would go before the file
    }
    with _environment(values):
        import ray
        from ray._private import ray_constants

        raylet: Any = ray._raylet  # compiled, without types

        def reread() -> None:
            raylet.Config.initialize("")
            raylet.AuthenticationTokenLoader.instance().reset_cache()

        before = ray_constants.ENABLE_RAY_CLUSTER  # Ray may have been imported before
        ray_constants.ENABLE_RAY_CLUSTER = False
        reread()
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before
    reread()


@contextlib.contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables, or takes out those given as None, for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keeps Ray from handling SIGTERM in this process: it would exit with code 15 or, three seconds
    into the way out, abort."""
    from ray._private import ray_constants
    from ray._private import utils as ray_utils

    original = ray_utils.set_sigterm_handler, ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER
    ray_utils.set_sigterm_handler = lambda handler: None
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler, ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = original


def _short_folder() -> str:
    """Where a folder with sockets may lie; empty means where temporary files lie anyway."""
    return "" if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"
