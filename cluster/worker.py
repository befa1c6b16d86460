"""What each Ray Train worker runs: the same trainer as in local mode, over ZeRO engines."""

import platform
import sys
import time
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import train as ray_train
from ray.train.torch import get_device
from torch import nn

from cluster.agreement import check_data, check_storage, check_versions
from cluster.board import Failure
from cluster.link import Link
from distgan import storage
from distgan.config import Config
from distgan.config_loading import build_config, with_values
from distgan.data.stream import ClipStream
from distgan.errors import DistganError, UserError, for_user, kind_of
from distgan.networks import build_discriminator, build_generator
from distgan.precision import pick_device, pick_precision
from distgan.team import GroupTeam, failing_together, from_first
from distgan.trainer import Outcome, Trainer


def train_on_rank(task: dict[str, Any]) -> None:
    """Ray Train's training function.

    Args:
        task: `config` (as JSON), `board` (an actor's handle), `versions` (of the starting
            process), `listening` (whether that process wants to hear what is logged), `seen`
            (whether the ranks of an earlier attempt have seen the run's folder).
    """
    board = task["board"]
    rank = ray_train.get_context().get_world_rank()
    with Link(board, rank) as link:
        try:
            link.trainer = _make_trainer(
                build_config(task["config"]), task["versions"], seen=task["seen"]
            )
            link.trainer.listener = link.listen if task["listening"] else None
            outcome = link.trainer.run(link)
        except (DistganError, ImportError, OSError) as error:
            failure = _failure(rank, error)
            if failure is None:
                raise
            ray.get(board.fail.remote(failure))
            if _all_fail(board, dist.get_world_size()):
                return  # the starting process knows; Ray would bury the message in tracebacks
            raise  # others wait for this rank: only its failure ends them
        if rank == 0:
            ray.get(board.end.remote(_as_json(outcome)))


def _failure(rank: int, error: DistganError | ImportError | OSError) -> Failure | None:
    """What the starting process is told; None of a fault that may be gone at the next attempt."""
    if isinstance(error, OSError):
        mended = for_user(error)
        if mended is None:
            return None
        error = UserError(f"rank {rank} on {platform.node()}: {mended}")
    if isinstance(error, ImportError):
        error = UserError(
            f"{sys.executable} on {platform.node()}: {error}; install the same packages on every "
            "machine of the cluster, for the Python that Ray runs under there"
        )
    return Failure(rank, kind_of(error), str(error))


def _all_fail(board: Any, size: int) -> bool:
    """Whether every rank has an error of ours, as where all decide alike."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        if len(ray.get(board.read.remote()).failures) == size:
            return True
        time.sleep(0.1)
    return False


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {"step": outcome.step, "reason": outcome.reason, "signal": outcome.signal}


def _make_trainer(
    config: Config, wanted_versions: dict[str, str], *, seen: bool = False
) -> Trainer:
    device = _device(config)
    # Imported late: DeepSpeed looks for its device when it is imported.
    from cluster.process_group import start_process_group
    from cluster.sharded_average import ShardedAverage
    from cluster.zero import ZeroEngine

    start_process_group(device)
    storage.configure(config.storage)
    team = GroupTeam(device)
    with failing_together(team):
        check_versions(wanted_versions)
    check_storage(config, team, seen=seen)
    with failing_together(team):
        stream = ClipStream(
            config.data.shards,
            config.data,
            seed=config.seed,
            batch_size=config.train.batch_size,
            rank=team.rank,
            ranks=team.size,
        )
    check_data(config, stream.digest, team)
    precision = config.train.precision
    if precision == "auto":
        own = pick_precision(precision, device) if team.rank == 0 else None
        precision = from_first(team, own)
    schedule_steps = config.train.schedule_steps or config.train.max_steps
    config = with_values(
        config, {"train.precision": precision, "train.schedule_steps": schedule_steps}
    )

    def engine(name: str, module: nn.Module) -> ZeroEngine:
        return ZeroEngine(
            name,
            module,
            getattr(config.optim, name),
            getattr(config.cluster, name),
            precision=precision,
            accumulation=config.train.accumulation,
        )

    generator = engine("generator", build_generator(config, device))
    discriminator = engine("discriminator", build_discriminator(config, device))
    average = ShardedAverage(build_generator(config, device), generator)
    return Trainer(
        config, device, generator, discriminator, average, stream, team, show_progress=False
    )


def _device(config: Config) -> torch.device:
    """Raises `UserError` if torch sees no GPU here, and the run is one on GPUs."""
    device = pick_device(config.train.device)
    return get_device() if device.type == "cuda" else device
