"""What a cluster has for workers, as it is now."""

import math
import time
from collections.abc import Callable, Iterable, Mapping

import ray

# Developers' APIs; none is more public.
from ray._private.state import available_resources_per_node
from ray._private.state import state as cluster_state

from cluster.board import on_node
from cluster.scaling import Places
from distgan.config import Config
from distgan.config_loading import with_values

_ANSWER_S = 5.0
_SETTLE_S = 90.0
"""Ray notices within about half a minute that a machine no longer answers."""


def places(config: Config) -> Places:
    """How many workers fit, each whole on one machine."""
    needs = resources(config)
    there = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    machines = {node: there[node] for node in there.keys() - leaving()}
    available = available_resources_per_node()
    free = [available[node] for node in machines if node in available]
    return Places(total=fitting(machines.values(), needs), free=fitting(free, needs))


def leaving() -> frozenset[str]:
    """Ids of machines that Ray drains: they are about to go, and take nothing new."""
    return frozenset(cluster_state.get_draining_nodes())


def fitting(machines: Iterable[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """How many times what is needed is there, never shared between machines."""
    return sum(
        min(math.floor(machine.get(name, 0) / count + 1e-9) for name, count in needs.items())
        for machine in machines
    )


def uses_gpus(config: Config) -> bool:
    """Whether each worker gets a GPU: `auto` takes them if there are any now."""
    if config.train.device == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) >= 1)
    return config.train.device == "cuda"


def with_device(config: Config) -> Config:
    """`auto` answered, once for a run: one whose GPUs are lost waits for others, and does not go on
    on CPUs."""
    return with_values(config, {"train.device": "cuda" if uses_gpus(config) else "cpu"})


def resources(config: Config) -> Mapping[str, float]:
    """Of one worker."""
    needs = {"CPU": config.cluster.cpus_per_worker}
    return needs | {"GPU": 1} if uses_gpus(config) else needs


def wait_until_settled(stopped: Callable[[], bool]) -> None:
    """After a fault: returns when every machine that Ray counts does answer, or after a while, or
    soon after `stopped` says so.

    Workers placed on a machine that is lost, and not yet known to be, would never start.
    """
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline and not stopped():
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        answer = ray.remote(num_cpus=0, max_retries=0)(_answer)
        asked = [answer.options(scheduling_strategy=on_node(node)).remote() for node in nodes]
        done, silent = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S)
        if not silent and not any(_failed(reference) for reference in done):
            return
        time.sleep(1)


def _answer() -> bool:
    return True


def _failed(reference: "ray.ObjectRef[bool]") -> bool:
    try:
        return not ray.get(reference)
    except ray.exceptions.RayError:
        return True
