"""What Ray Train costs beside plain processes: the time of a step, and of the start.

Steps: the same function (G+D steps under ZeRO on two workers) runs under Ray Train, with the thread
that keeps in touch with the command, and in plain processes as torchrun starts them; turn by turn.
Start: from `fit()` to the first line of an empty training function, and to the first step of ours;
and from the start of a plain process to its first step: the model's own time, imports included.
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
    """Prints two tables."""
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
    results: dict[str, list[dict[str, float]]] = {"plain": [], "ray": [], "empty": []}
    with connected(object_store_bytes=2**28, dashboard=True), TemporaryDirectory() as folder:
        runs: dict[str, Callable[[], dict[str, float]]] = {
            "plain": lambda: _plain(config, parsed.steps),
            "ray": lambda: _under_ray(config, parsed.steps, folder),
            "empty": lambda: _under_ray(config, 0, folder),
        }
        for number in range(parsed.rounds):
            for name in runs if number % 2 == 0 else reversed(list(runs)):
                results[name].append(runs[name]())
    pairs = list(zip(results["ray"], results["plain"], strict=True))
    step_s = statistics.median(plain["step_s"] for _, plain in pairs)
    print(f"{parsed.preset}, {RANKS} workers, {parsed.rounds} rounds of {parsed.steps} steps of "
          f"{step_s:.2f} s; median (quartiles)\n")  # fmt: skip
    print("| what | seconds or ratio |\n|---|---|")
    print(
        f"| step, Ray Train over plain | {spread([r['step_s'] / p['step_s'] for r, p in pairs])} |"
    )
    for name, text in (
        ("empty", "Ray Train: start of an empty function"),
        ("ray", "Ray Train: start to the end of the first step"),
        ("plain", "plain processes: start to the end of the first step"),
    ):
        print(f"| {text} | {spread([result['first_s'] for result in results[name]])} |")


def _plain(config: Config, steps: int) -> dict[str, float]:
    started = time.time()
    return run_on_ranks(take_steps, (config, steps, started), world_size=RANKS)[0]


def _under_ray(config: Config, steps: int, folder: str) -> dict[str, float]:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig, RunConfig

    from cluster.board import make_board

    result = Path(folder, f"{time.time_ns()}")
    trainer = TorchTrainer(
        train_function,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "steps": steps,
            "started": time.time(),
            "board": make_board(),
            "result": str(result),
        },
        scaling_config=ScalingConfig(num_workers=RANKS, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(  # type: ignore[arg-type]
            name=result.name, storage_path=folder, logging_config=LoggingConfig(log_level="ERROR")
        ),
    )
    trainer.fit()
    first_s, step_s = map(float, result.read_text().split())
    return {"first_s": first_s, "step_s": step_s}


def train_function(task: dict[str, Any]) -> None:
    """In a Ray Train worker; rank 0 writes its seconds to a file."""
    from cluster.link import Link

    found = {"first_s": time.time() - task["started"], "step_s": 0.0}
    rank = torch.distributed.get_rank()
    if task["steps"]:
        from cluster.process_group import start_process_group

        with Link(task["board"], rank):
            start_process_group(torch.device("cpu"))
            found = take_steps(build_config(task["config"]), task["steps"], task["started"])
    if rank == 0:
        Path(task["result"]).write_text(f"{found['first_s']} {found['step_s']}")


def take_steps(config: Config, steps: int, started: float) -> dict[str, float]:
    """On a rank: seconds until the first step's end, and the median of the further ones."""
    device = torch.device("cpu")
    generator, discriminator = sharded_engines(config, device)
    step = AdversarialStep(config, generator, discriminator, PartTimer(device))
    places = own_places(config.train.batch_size)
    clips = random_clips(config, 0, device)[places.start : places.stop]
    step.run(clips, places, 1)
    first_s = time.time() - started
    seconds = []
    for number in range(steps):
        torch.distributed.barrier()
        start = time.perf_counter()
        step.run(clips, places, number + 2)
        torch.distributed.barrier()
        seconds.append(time.perf_counter() - start)
    return {"first_s": first_s, "step_s": statistics.median(seconds)}
