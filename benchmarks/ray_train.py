"""What Ray Train costs beside plain processes: the time of a step.

The same function (G+D steps under ZeRO on two workers) runs under Ray Train, with the thread that
keeps in touch with the command, and in plain processes as torchrun starts them. Both pairs live at
the same time and take turns, so that a machine whose speed changes is as fast for one as for the
other; Ray's servers run beside both. The time of the start is `start_up`'s.
"""

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
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
SIDES = ("plain", "ray")
PATIENCE_S = 300.0


def main(argv: list[str]) -> None:
    """Prints the ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ray_train", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--preset", default="small-64")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parsed = parser.parse_args(argv)
    overrides = ["train.batch_size=8", "train.precision=fp32", "train.device=cpu"]
    config = load_config(parsed.preset, overrides=[*overrides, *parsed.overrides])

    from cluster.job import RAY_TRAIN_ENVIRONMENT
    from cluster.ray_cluster import connected

    os.environ.update(RAY_TRAIN_ENVIRONMENT)
    with (
        connected(object_store_bytes=2**28, dashboard=True),
        TemporaryDirectory() as folder,
        ThreadPoolExecutor(1) as pool,
    ):
        turns = (parsed.rounds, parsed.steps, folder)
        plain = pool.submit(
            run_on_ranks, take_turns, ("plain", config, *turns), world_size=RANKS, timeout_s=3600
        )
        _under_ray(config, *turns)
        plain.result()
        seconds = _seconds_by_side(parsed.rounds, Path(folder))
    ratios = [ray / plain for ray, plain in zip(seconds["ray"], seconds["plain"], strict=True)]
    print(f"{parsed.preset}, {RANKS} workers, {parsed.rounds} rounds of {parsed.steps} steps of "
          f"{statistics.median(seconds['plain']):.2f} s\n\n"
          f"step under Ray Train over plain processes: {spread(ratios)}")  # fmt: skip


def _order(rounds: int) -> list[str]:
    """The side of each turn: a round is one turn of each, first to last and back. The first two
    turns warm up."""
    pairs = [SIDES if number % 2 else SIDES[::-1] for number in range(rounds + 1)]
    return [side for pair in pairs for side in pair]


def _seconds_by_side(rounds: int, folder: Path) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn, side in list(enumerate(_order(rounds)))[len(SIDES) :]:
        seconds[side].append(float((folder / f"turn-{turn}").read_text()))
    return seconds


def _under_ray(config: Config, rounds: int, steps: int, folder: str) -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig, RunConfig

    from cluster.board import make_board

    trainer = TorchTrainer(
        train_function,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "turns": (rounds, steps, folder),
            "board": make_board(),
        },
        scaling_config=ScalingConfig(num_workers=RANKS, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(  # type: ignore[arg-type]
            name="run", storage_path=folder, logging_config=LoggingConfig(log_level="ERROR")
        ),
    )
    trainer.fit()


def train_function(task: dict[str, Any]) -> None:
    """In a Ray Train worker."""
    from cluster.link import Link
    from cluster.process_group import start_process_group

    with Link(task["board"], torch.distributed.get_rank()):
        start_process_group(torch.device("cpu"))
        take_turns("ray", build_config(task["config"]), *task["turns"])


def take_turns(side: str, config: Config, rounds: int, steps: int, folder: str) -> None:
    """On a rank: takes its side's steps when the turn before has ended; rank 0 writes the median
    seconds of a step to the turn's file."""
    device = torch.device("cpu")
    rank = torch.distributed.get_rank()
    generator, discriminator = sharded_engines(config, device)
    step = AdversarialStep(config, generator, discriminator, PartTimer(device))
    places = own_places(config.train.batch_size)
    clips = random_clips(config, 0, device)[places.start : places.stop]
    number = 0
    for turn, whose in enumerate(_order(rounds)):
        if whose != side:
            continue
        if rank == 0 and turn:
            _wait_for(Path(folder, f"turn-{turn - 1}"))
        torch.distributed.barrier()
        seconds = []
        for _ in range(steps):
            number += 1
            start = time.perf_counter()
            step.run(clips, places, number)
            torch.distributed.barrier()
            seconds.append(time.perf_counter() - start)
        if rank == 0:
            done = Path(folder, f"turn-{turn}")
            done.with_suffix(".part").write_text(str(statistics.median(seconds)))
            done.with_suffix(".part").rename(done)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the other side did not take its turn ({path.name})")
        time.sleep(0.01)
