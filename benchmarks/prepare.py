"""What a second process gives prepare: the same videos with 1 and 2, in turns.

    python -m benchmarks prepare [--pairs 6] [--videos 48] [--seconds 12] [KEY=VALUE ...]

Wall time of a whole prepare of rendered 256-pixel videos (or of those in --input), start of the
processes included; the time ratio is that of one process over that of two. Every run must give the
same bytes. Where other work shares the cores, wall time says little; CPU time still shows what the
second process costs.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av

from benchmarks._clips import rendered_images
from distgan.config import Config
from distgan.config_loading import load_config, with_values
from distgan.data.prepare import prepare

FRAME_RATE_HZ = 16
NUM_DIFFERENT = 12  # rendering takes longer than preparing


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks prepare", description=__doc__)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--seconds", type=int, default=12, help="length of each video")
    parser.add_argument("--input", default="", help="folder of videos; without it, rendered ones")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args(argv)
    if arguments.pairs < 2:
        parser.error("--pairs must be 2 or more: a spread needs them")
    config = load_config(overrides=arguments.overrides)
    with tempfile.TemporaryDirectory() as folder:
        videos = arguments.input or _render(Path(folder, "in"), arguments.videos, arguments.seconds)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        cpu_seconds: dict[int, list[float]] = {1: [], 2: []}
        digests = set()
        for pair in range(arguments.pairs):
            for processes in (1, 2) if pair % 2 == 0 else (2, 1):
                output = Path(folder, f"{pair}-{processes}")
                start, cpu_start = time.perf_counter(), _cpu_seconds()
                _prepare(videos, output, config, processes)
                seconds[processes].append(time.perf_counter() - start)
                cpu_seconds[processes].append(_cpu_seconds() - cpu_start)
                digests.add(_digest(output))
    assert len(digests) == 1, "the output depends on the number of processes"
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    for processes, times in seconds.items():
        cpu = statistics.median(cpu_seconds[processes])
        print(
            f"{processes} processes: {statistics.median(times):.2f} s, {cpu:.2f} s of CPU (medians)"
        )
    print(
        f"ratio: {statistics.median(ratios):.2f} (quartiles {quartiles[0]:.2f} to "
        f"{quartiles[2]:.2f}, range {min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} pairs)"
    )
    print(f"all {2 * len(ratios)} outputs have the sha256 {digests.pop()}")


def _render(folder: Path, num_videos: int, seconds: int) -> str:
    """Textured scenes with moving things, 256 x 192 pixels, as H.264; each twelfth is the same."""
    folder.mkdir()
    for seed in range(num_videos):
        if seed >= NUM_DIFFERENT:
            shutil.copy(folder / f"{seed % NUM_DIFFERENT:04d}.mp4", folder / f"{seed:04d}.mp4")
            continue
        images = rendered_images(seconds * FRAME_RATE_HZ, seed)
        with av.open(str(folder / f"{seed:04d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FRAME_RATE_HZ)
            stream.width, stream.height, stream.pix_fmt = 256, 192, "yuv420p"
            for number, image in enumerate(images):
                image.pts, image.time_base = number, Fraction(1, FRAME_RATE_HZ)
                container.mux(stream.encode(image))
            container.mux(stream.encode())
    return str(folder)


def _prepare(videos: str, output: Path, config: Config, processes: int) -> None:
    config = with_values(config, {"prepare.num_processes": processes})
    prepare(videos, str(output), config, show_progress=False)


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _digest(folder: Path) -> str:
    """Of all files in a folder, with their names."""
    whole = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        whole.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
