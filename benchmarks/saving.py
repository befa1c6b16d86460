"""How long a step waits for a checkpoint that is written in the background, on two ranks over gloo.

A trainer as a run's workers have it: both networks under ZeRO with Adam, the average shared out, at
least a gigabyte of state in all. After a real step its `save` runs again and again, in turn with a
plain copy of the same bytes by the same ranks: pieces of both engines and of the average, what the
ranks exchange, and the start of the writing thread. Writing and committing are waited for between
rounds, and their time told. Of both ranks, the slower one counts.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch.distributed

from benchmarks._pairs import spread
from cluster.agreement import versions
from cluster.ranks import run_on_ranks
from cluster.worker import _make_trainer as make_trainer
from distgan.config import Config
from distgan.config_loading import load_config
from distgan.data.demo import render_demo_videos
from distgan.data.prepare import prepare
from distgan.observer import Observer
from distgan.saving import Saver

RANKS = 2
GOAL = 1.5
CHANNELS = "[288,576,1152]"  # 88 million parameters in both networks


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks saving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2, 3])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parsed = parser.parse_args(argv)
    lines = []
    for stage in parsed.stages:
        with TemporaryDirectory(prefix="distgan-benchmark-") as folder:
            config = _config(folder, stage, parsed.overrides)
            ranks = run_on_ranks(
                _measure, (config, parsed.rounds), world_size=RANKS, timeout_s=1800
            )
        size = sum(rank.held_bytes for rank in ranks) / 2**30
        copies, waits, writes = (
            [max(both) for both in zip(*times, strict=True)]
            for times in zip(*((r.copies, r.waits, r.writes) for r in ranks), strict=True)
        )
        ratios = [wait / copy for wait, copy in zip(waits, copies, strict=True)]
        times = " | ".join(map(spread, (copies, waits, ratios, writes)))
        lines.append(f"| {stage} | {size:.2f} | {times} |")
    print(f"{RANKS} ranks, {parsed.rounds} rounds, median (quartiles); the goal is {GOAL}\n")
    print(
        "| ZeRO stage | state, GiB | copy, s | the step waits, s | waits over copies | written, s |"
    )
    print("|---|---|---|---|---|---|", *lines, sep="\n")


def _config(folder: str, stage: int, overrides: list[str]) -> Config:
    values = [
        f"data.shards={folder}/data", f"run.dir={folder}/run", "data.num_workers=0", "data.lanes=2",
        "train.batch_size=2", "train.device=cpu", "train.precision=fp32",
        f"model.generator.channels={CHANNELS}", f"model.discriminator.channels={CHANNELS}",
        f"cluster.generator.zero_stage={stage}", f"cluster.discriminator.zero_stage={stage}",
    ]  # fmt: skip
    config = load_config("demo", overrides=[*values, *overrides])
    videos = str(Path(folder, "videos"))
    render_demo_videos(videos, num_videos=8, seed=0, size=config.data.resolution)
    prepare(videos, config.data.shards, config, show_progress=False)
    return config


class Measured(NamedTuple):
    """Seconds of each round, on one rank."""

    copies: list[float]
    waits: list[float]
    writes: list[float]
    """From when the step goes on until the checkpoint is committed."""
    held_bytes: int
    """Of the pieces that this rank writes."""


def _measure(config: Config, rounds: int) -> Measured:
    trainer = make_trainer(config, versions())
    observer = Observer(config, trainer.stream, trainer.average, None, trainer.team, trainer.device)
    saver = Saver(config.run.dir, 2, trainer.team)
    trainer.train_on(next(trainer.stream.batches()))
    parts = (trainer.average, *trainer.engines)
    pieces = [fragment.values for part in parts for fragment in part.state_fragments()]
    found = Measured([], [], [], sum(piece.nbytes for piece in pieces))

    def copy() -> None:
        found.copies.append(_seconds(lambda: [piece.to("cpu", copy=True) for piece in pieces]))

    def save() -> None:
        trainer.step += 1
        found.waits.append(_seconds(lambda: trainer.save(observer, saver)))
        found.writes.append(_seconds(saver.finish))

    for number in range(rounds + 1):
        for work in (copy, save) if number % 2 else (save, copy):
            work()
    return found._replace(
        copies=found.copies[1:], waits=found.waits[1:], writes=found.writes[1:]
    )  # the first round warms up


def _seconds(work: Callable[[], object]) -> float:
    """From when all ranks are ready."""
    torch.distributed.barrier()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    del result  # taking memory back is not of the copy
    return seconds
