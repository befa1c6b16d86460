"""Decoding: our loader with a worker process a core, against single-thread PyAV times the cores.

    python -m benchmarks decoding [--rounds 5] [--resolution 128] [--clips 800]

mp4 clips of 16 frames. Ours reads, checks, decodes and hands batches over to the parent process;
PyAV decodes clips that lie in memory. Where cores share caches, memory or their pipelines, PyAV in
a process a core does not reach PyAV on one thread times the cores; so both are shown. Wall time
suffers from other processes; the ratio by CPU time (what one clip costs all of our processes,
against what it costs PyAV) does so less.
"""

import argparse
import io
import itertools
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from benchmarks._pairs import Clock, Cost, measured, rates, speed_ratio
from benchmarks._shards import FRAMES, make_shards
from distgan.config import DataConfig
from distgan.data.shard_reader import read_shard
from distgan.data.stream import ClipStream
from distgan.data.workers import num_cores

BATCH, CLIPS, SHARDS = 16, 200, 8


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks decoding")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--clips", type=int, default=800, help="decoded a measurement")
    args = parser.parse_args(argv)
    cores = num_cores()
    with tempfile.TemporaryDirectory() as name:
        manifest = make_shards(
            Path(name), clip_format="mp4", resolution=args.resolution, shards=SHARDS, clips=CLIPS
        )
        config = DataConfig(
            resolution=args.resolution, clip_frames=FRAMES, lanes=8, num_workers=cores
        )
        stream = ClipStream(name, config, seed=0, batch_size=BATCH)
        batches = stream.batches()
        clips = [bytes(clip) for clip in read_shard(name, manifest, 0).clips if clip is not None]

        def ours() -> Cost:
            # The workers have decoded ahead while the other ran: that is taken first.
            for _ in itertools.islice(batches, 6):
                pass
            clock = Clock()
            for _ in itertools.islice(batches, args.clips // BATCH):
                pass
            return clock.cost(args.clips)

        with multiprocessing.get_context("spawn").Pool(cores, _keep, (clips,)) as pool:

            def side_by_side() -> Cost:
                clock = Clock()
                pool.map(_decode, [args.clips // cores] * cores, chunksize=1)
                return clock.cost(args.clips)

            def alone() -> Cost:
                clock = Clock()
                _decode(args.clips // cores)
                return clock.cost(args.clips // cores)

            _keep(clips)
            costs = measured({"ours": ours, "side": side_by_side, "alone": alone}, args.rounds)
        batches.close()
    print("| decoder | clips/s | clips a CPU second |\n|---|---|---|")
    print(f"| our loader, {cores} workers | {rates(costs, 'ours')} |")
    print(f"| PyAV, {cores} processes of one thread | {rates(costs, 'side')} |")
    print(f"| PyAV, one thread | {rates(costs, 'alone')} |\n")
    costs["times"] = [Cost(c.wall_s / cores, c.cpu_s) for c in costs["alone"]]
    for other, name in (("times", f"{cores} x PyAV on one thread"), ("side", "PyAV side by side")):
        print(
            f"ours over {name}: {speed_ratio(costs, 'ours', other)}; by CPU time: "
            f"{speed_ratio(costs, 'ours', other, 'cpu_s')}; {args.rounds} rounds"
        )


_clips: list[bytes] = []


def _keep(clips: list[bytes]) -> None:
    _clips[:] = clips


def _decode(count: int) -> None:
    """So many clips, as PyAV's documentation shows it, but for the one reformatter."""
    reformatter = VideoReformatter()
    for data in itertools.islice(itertools.cycle(_clips), count):
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            video: Any = container.streams.video[0]
            video.codec_context.thread_count = 1
            np.stack(
                [
                    reformatter.reformat(image, format="rgb24", threads=1).to_ndarray()
                    for image in container.decode(video)
                ]
            )
