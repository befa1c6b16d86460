"""How many workers a run may have: the global batch and the lanes must divide among them."""

from dataclasses import dataclass

from distgan.config import Config
from distgan.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Places:
    """For workers on a cluster."""

    total: int
    """Were nothing else running there."""
    free: int
    """Beside what runs there now."""


def allowed_sizes(config: Config) -> list[int]:
    """Numbers of workers, ascending, that share batch and lanes evenly, within the bounds."""
    least, most = bounds(config)
    micro_batches = config.train.batch_size // config.train.accumulation
    return [
        size
        for size in range(least, min(most, config.data.lanes) + 1)
        if micro_batches % size == 0 and config.data.lanes % size == 0
    ]


def bounds(config: Config) -> tuple[int, int]:
    """Least and most workers; both are `cluster.num_workers` unless set apart."""
    cluster = config.cluster
    return (
        cluster.min_workers or cluster.num_workers,
        cluster.max_workers or cluster.num_workers,
    )


def check_sizes(config: Config) -> None:
    """Raises `UserError` unless `cluster.num_workers` is allowed and within its bounds, and Ray can
    count their CPUs."""
    cluster, train = config.cluster, config.train
    if round(cluster.cpus_per_worker, 4) != cluster.cpus_per_worker:
        raise UserError(
            f"cluster.cpus_per_worker={cluster.cpus_per_worker} is no multiple of 0.0001, in which "
            "Ray counts; round it"
        )
    least, most = bounds(config)
    if not least <= cluster.num_workers <= most:
        raise UserError(
            f"cluster.num_workers={cluster.num_workers} is not between cluster.min_workers={least} "
            f"and cluster.max_workers={most}"
        )
    if cluster.num_workers not in allowed_sizes(config):
        micro_batches = train.batch_size // train.accumulation
        fitting = [
            size
            for size in range(1, config.data.lanes + 1)
            if micro_batches % size == 0 and config.data.lanes % size == 0
        ]
        raise UserError(
            f"cluster.num_workers={cluster.num_workers} does not divide both "
            f"train.batch_size / train.accumulation = {micro_batches} and "
            f"data.lanes={config.data.lanes}; take one of {fitting}, or change those"
        )


def size_for(config: Config, num_places: int) -> int:
    """The largest allowed number of workers for so many places; 0 if there are too few."""
    return max((size for size in allowed_sizes(config) if size <= num_places), default=0)


def too_few(config: Config, places: Places) -> UserError:
    """What to raise if no allowed number of workers finds places."""
    least, _ = bounds(config)
    gpu = " and a GPU, by train.device=cuda" if config.train.device == "cuda" else ""
    return UserError(
        f"cluster.num_workers={config.cluster.num_workers} needs at least {least} devices (each "
        f"cluster.cpus_per_worker={config.cluster.cpus_per_worker:g} CPUs of one machine{gpu}), "
        f"but the cluster has {places.total}, {places.free} of them free; wait until what holds "
        "the others has ended, lower cluster.num_workers, or set cluster.min_workers to go on "
        "with fewer"
    )
