"""An empty Ray Train function on two workers: `python -m benchmarks._empty_train MARKER WORKERS`.

With Ray's own defaults; rank 0 makes the marker file as soon as the function starts.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def empty(task: dict[str, Any]) -> None:
    """The training function."""
    from ray import train

    if train.get_context().get_world_rank() == 0:
        Path(task["marker"]).touch()


def main(marker: str, workers: int) -> None:
    """Starts a cluster on this machine, runs the function, and ends."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", log_to_driver=False)
    with TemporaryDirectory() as folder:
        TorchTrainer(
            empty,
            train_loop_config={"marker": marker},
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(name="empty", storage_path=folder),
        ).fit()


if __name__ == "__main__":
    from benchmarks import _empty_train  # a function of __main__ would travel by value

    _empty_train.main(sys.argv[1], int(sys.argv[2]))
