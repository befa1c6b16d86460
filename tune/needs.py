"""What a trial needs of the cluster, and how many trials fit."""

import ray
from ray.tune import PlacementGroupFactory

from cluster.devices import fitting, places, uses_gpus
from distgan.config import Config
from distgan.errors import UserError
from tune.records import SweepSpec

_DRIVER = {"CPU": 0.0, "memory": float(2**20)}
"""Of the process that watches a trial's workers: Ray wants it to need something, and were it any
share of a CPU, a trial whose workers need all CPUs would never start."""


def placement(config: Config, spec: SweepSpec) -> PlacementGroupFactory:
    """Of a trial's process; workers of a trial that has several take their places beside it."""
    if config.cluster.num_workers:
        return PlacementGroupFactory([_DRIVER])
    return PlacementGroupFactory([_of_one_process(config, spec)])


def trials_at_a_time(config: Config, spec: SweepSpec) -> int:
    """How many trials the cluster has room for, were nothing else running: the others wait.

    Raises:
        UserError: none; nothing would ever start.
    """
    if config.cluster.num_workers:
        have = places(config).total
        room = have // config.cluster.num_workers
        what = "GPUs" if uses_gpus(config) else f"x {config.cluster.cpus_per_worker:g} CPUs"
        wanted, there = f"{config.cluster.num_workers} {what}", f"{have} {what}"
    else:
        needs = _of_one_process(config, spec)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = fitting(machines, needs)
        wanted = " and ".join(f"{count:g} {name}" for name, count in needs.items())
        largest = {name: max(m.get(name, 0) for m in machines) for name in needs}
        there = " and ".join(f"{count:g} {name}" for name, count in largest.items())
    if room < 1:
        raise UserError(
            f"each trial needs {wanted}, and the cluster has at most {there}; lower "
            "cluster.num_workers or cluster.cpus_per_worker, or add machines"
        )
    return min(room, spec.max_concurrent or room)


def _of_one_process(config: Config, spec: SweepSpec) -> dict[str, float]:
    needs = {"CPU": config.cluster.cpus_per_worker}
    return needs | {"GPU": spec.gpus_per_trial} if uses_gpus(config) else needs
