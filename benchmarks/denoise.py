"""Denoising filters at their default strength: noise of known strength in, PSNR out.

    python -m benchmarks denoise [--input FOLDER] [--strength 1]

White noise on all planes of 8-bit 4:2:0 frames at the videos' own size. The last columns follow the
clips to 64 x 64 pixels, with the filter before the scaling, as prepare does it.
"""

import argparse
import time
from fractions import Fraction
from typing import Any

import av
import numpy as np

from benchmarks._clips import Pixels, mean, psnr, runs_of_frames
from distgan.config import DenoiseConfig
from distgan.data.denoise import FILTERS, check_denoise, denoise
from distgan.data.formatting import Formatter

SIGMAS = (5, 10, 20)
FRAMES = 8


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks denoise")
    parser.add_argument("--input", default="", help="folder of videos; without it, synthetic ones")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--clips", type=int, default=4)
    args = parser.parse_args(argv)
    runs = [planes_of(run) for run in runs_of_frames(args.input, FRAMES, 1, args.clips)]
    print(f"\n{len(runs)} clips of {FRAMES} frames; PSNR in dB of all planes, mean over clips\n")
    noise = " | ".join(f"noise {sigma}" for sigma in SIGMAS)
    print(f"| filter | frames/s | clean | worst clean | {noise} | clean at 64 | noise 10 at 64 |")
    print("|---|" + "---|" * (5 + len(SIGMAS)))
    print(row("(input)", runs, DenoiseConfig(kind="none")), flush=True)
    for kind in FILTERS:
        config = DenoiseConfig.model_validate({"kind": kind, "strength": args.strength})
        check_denoise(config)
        print(row(kind, runs, config), flush=True)


def row(name: str, runs: list[Pixels], config: DenoiseConfig) -> str:
    """One line of the table."""
    start = time.process_time()
    cleaned = [filtered(clean, config) for clean in runs]
    rate = sum(map(len, runs)) / (time.process_time() - start)
    kept = [psnr(a, b) for a, b in zip(cleaned, runs, strict=True)]
    cells = [f"{rate:.0f}", _db(mean(kept)), _db(min(kept))]
    for sigma in SIGMAS:
        results = [psnr(filtered(noisy(clean, sigma), config), clean) for clean in runs]
        cells.append(_db(mean(results)))
    small = [at_64(clean) for clean in runs]
    kept_small = [psnr(at_64(a), b) for a, b in zip(cleaned, small, strict=True)]
    noisy_small = [
        psnr(at_64(filtered(noisy(clean, 10), config)), b)
        for clean, b in zip(runs, small, strict=True)
    ]
    cells += [_db(mean(kept_small)), _db(mean(noisy_small))]
    if config.kind == "none":
        cells[0] = "-"
    return f"| {name} | " + " | ".join(cells) + " |"


def planes_of(run: list[Any]) -> Pixels:
    """Frames as 8-bit 4:2:0 planes, as FFmpeg lays them out: (T, 3 H / 2, W)."""
    return np.stack([image.reformat(format="yuv420p").to_ndarray() for image in run])


def noisy(planes: Pixels, sigma: float) -> Pixels:
    """Adds Gaussian noise of this deviation (of 255), rounds and clips."""
    noise = np.random.default_rng(0).normal(0, sigma, planes.shape)
    return np.clip(planes + noise + 0.5, 0, 255).astype(np.uint8)


def filtered(planes: Pixels, config: DenoiseConfig) -> Pixels:
    """The frames after the filter."""
    images = (av.VideoFrame.from_ndarray(frame, format="yuv420p") for frame in planes)
    return np.stack([image.to_ndarray() for _, image in denoise(enumerate(images), config)])


def at_64(planes: Pixels) -> Pixels:
    """The frames as prepare stores them at 64 x 64."""
    formatter = Formatter(64, "crop", Fraction(1))
    images = (av.VideoFrame.from_ndarray(frame, format="yuv420p") for frame in planes)
    return np.stack([formatter(image) for image in images])


def _db(value: float) -> str:
    return "exact" if value == 99 else f"{value:.1f}"
