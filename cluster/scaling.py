"""How many workers a run may have: the global batch and the lanes must divide among them."""

from distgan.config import Config
from distgan.errors import UserError


def allowed_sizes(config: Config) -> list[int]:
    """Numbers of workers, ascending, that share batch and lanes evenly, within the bounds."""
    least, most = bounds(config)
    micro_batches = config.train.batch_size // config.train.accumulation
    return [
        size
        for size in range(least, most + 1)
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
    """Raises `UserError` unless `cluster.num_workers` is allowed and within its bounds."""
    cluster, train = config.cluster, config.train
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


def size_for(config: Config, devices: int) -> int:
    """The largest allowed number of workers for so many devices.

    Raises:
        UserError: there are too few.
    """
    fitting = [size for size in allowed_sizes(config) if size <= devices]
    if not fitting:
        least, _ = bounds(config)
        raise UserError(
            f"cluster.num_workers={config.cluster.num_workers} needs at least {least} devices (a "
            f"GPU each where there are any, else cluster.cpus_per_worker="
            f"{config.cluster.cpus_per_worker} CPUs), but the cluster has {devices}; lower "
            "cluster.num_workers, or set cluster.min_workers to go on with fewer"
        )
    return fitting[-1]
