"""What Ray Train costs beside plain processes: the time of a step.

The same function (G+D steps under ZeRO on two workers) runs under Ray Train, with the thread that
keeps in touch with the command, and in plain processes as torchrun starts them; turn by turn. The
time of the start is `start_up`'s.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed

from benchmarks._pairs import spread
from cluster.engine_pairs import own_places, random_clips, sharded_engines
from cluster.ranks import run_on_ranks
from distgan.adversarial_step import AdversarialStep
from distgan.config import Config
from distgan.config_loading import build_config, load_config
from distgan.timing import PartTimer

RANKS = 2


def main(argv: list[str]) -> None:
    """Prints the ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ray_train", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--preset", default="small-64")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parsed = parser.parse_args(argv)
    overrides = ["train.batch_size=8", "train.precision=fp32", "train.device=cpu"]
    config = load_config(parsed.preset, overrides=[*overrides, *parsed.overrides])

    from cluster.job import RAY_TRAIN_ENVIRONMENT
    from cluster.ray_cluster import connected

    os.environ.update(RAY_TRAIN_ENVIRONMENT)
    results: dict[str, list[float]] = {"plain": [], "ray": []}
    with connected(object_store_bytes=2**28, dashboard=True), TemporaryDirectory() as folder:
        runs: dict[str, Callable[[], float]] = {
            "plain": lambda: _plain(config, parsed.steps),
            "ray": lambda: _under_ray(config, parsed.steps, folder),
        }
        for number in range(parsed.rounds):
            for name in runs if number % 2 == 0 else reversed(list(runs)):
                results[name].append(runs[name]())
    ratios = [ray / plain for ray, plain in zip(results["ray"], results["plain"], strict=True)]
    print(f"{parsed.preset}, {RANKS} workers, {parsed.rounds} rounds of {parsed.steps} steps of "
          f"{statistics.median(results['plain']):.2f} s\n\n"
          f"step under Ray Train over plain processes: {spread(ratios)}")  # fmt: skip


def _plain(config: Config, steps: int) -> float:
    seconds: float = run_on_ranks(take_steps, (config, steps), world_size=RANKS)[0]
    return seconds


def _under_ray(config: Config, steps: int, folder: str) -> float:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig, RunConfig

    from cluster.board import make_board

    name = str(time.time_ns())
    result = Path(folder, f"{name}.seconds")  # the folder of this name is the run's
    trainer = TorchTrainer(
        train_function,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "steps": steps,
            "board": make_board(),
            "result": str(result),
        },
        scaling_config=ScalingConfig(num_workers=RANKS, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(  # type: ignore[arg-type]
            name=name, storage_path=folder, logging_config=LoggingConfig(log_level="ERROR")
        ),
    )
    trainer.fit()
    return float(result.read_text())


def train_function(task: dict[str, Any]) -> None:
    """In a Ray Train worker; rank 0 writes the seconds of a step to a file."""
    from cluster.link import Link
    from cluster.process_group import start_process_group

    rank = torch.distributed.get_rank()
    with Link(task["board"], rank):
        start_process_group(torch.device("cpu"))
        step_s = take_steps(build_config(task["config"]), task["steps"])
    if rank == 0:
        Path(task["result"]).write_text(str(step_s))


def take_steps(config: Config, steps: int) -> float:
    """On a rank: the median seconds of a step, after one that warms up."""
    device = torch.device("cpu")
    generator, discriminator = sharded_engines(config, device)
    step = AdversarialStep(config, generator, discriminator, PartTimer(device))
    places = own_places(config.train.batch_size)
    clips = random_clips(config, 0, device)[places.start : places.stop]
    step.run(clips, places, 1)
    seconds = []
    for number in range(steps):
        torch.distributed.barrier()
        start = time.perf_counter()
        step.run(clips, places, number + 2)
        torch.distributed.barrier()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
