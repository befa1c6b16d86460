"""Decoding: our loader with a worker process a core, against single-thread PyAV times the cores.

    python -m benchmarks decoding [--rounds 5] [--resolution 128] [--clips 800]

mp4 clips of 16 frames. Ours reads, checks, decodes and hands batches over to the parent process;
PyAV decodes clips that lie in memory. Wall time suffers from other processes; the ratio by CPU time
(what one clip costs all of our processes, against what it costs PyAV) does not.
"""

import argparse
import io
import itertools
import tempfile
from collections.abc import Callable
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

        costs = measured({"ours": ours, "PyAV": _pyav(clips, args.clips // cores)}, args.rounds)
        batches.close()
    print("| decoder | clips/s | clips a CPU second |\n|---|---|---|")
    print(f"| our loader, {cores} workers | {rates(costs, 'ours')} |")
    print(f"| PyAV, one thread | {rates(costs, 'PyAV')} |")
    whole = {
        "ours": costs["ours"],
        "PyAV": [Cost(c.wall_s / cores, c.cpu_s) for c in costs["PyAV"]],
    }
    print(f"\nours over {cores} x PyAV: {speed_ratio(whole, 'ours', 'PyAV')}; by CPU time: "
          f"{speed_ratio(whole, 'ours', 'PyAV', 'cpu_s')}; {args.rounds} pairs")  # fmt: skip


def _pyav(clips: list[bytes], count: int) -> Callable[[], Cost]:
    reformatter = VideoReformatter()

    def run() -> Cost:
        clock = Clock()
        for data in itertools.islice(itertools.cycle(clips), count):
            with av.open(io.BytesIO(data), "r", format="mp4") as container:
                video: Any = container.streams.video[0]
                video.codec_context.thread_count = 1
                np.stack(
                    [
                        reformatter.reformat(image, format="rgb24", threads=1).to_ndarray()
                        for image in container.decode(video)
                    ]
                )
        return clock.cost(count)

    return run
