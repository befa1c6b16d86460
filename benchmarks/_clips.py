"""Material for the benchmarks of prepare: clips of real videos, or synthetic textured ones."""

from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from distgan.config import LimitsConfig
from distgan.data.videos import VideoReader, find_videos

Pixels = NDArray[np.uint8]


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, of 8-bit pixels; 99 for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return float(np.mean(values))


def runs_of_frames(folder: str, num_frames: int, step: int, most: int = 8) -> list[list[Any]]:
    """Runs of `num_frames` decoded frames, every `step`-th, from the middle of videos.

    Without a folder, synthetic ones. At most `most` runs, spread over the videos.
    """
    if not folder:
        return [rendered_images(num_frames, seed) for seed in range(4)]
    paths = find_videos(folder).paths
    runs = []
    for path in paths[:: max(1, len(paths) // most)][:most] + paths[-1:]:
        with VideoReader(str(Path(folder, path)), LimitsConfig()) as reader:
            images = [frame.image for frame, _ in zip(reader.frames(), range(400), strict=False)]
        start = max(0, (len(images) - num_frames * step) // 2)
        images = images[start : start + num_frames * step : step]
        if len(images) == num_frames:
            runs.append(images)
    return runs


def rendered_images(num_frames: int, seed: int) -> list[Any]:
    """A texture of drifting waves with sharp-edged discs that move: 256 x 192 pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:192, 0:256]
    angles, phases = rng.uniform(0, 6.28, 12), rng.uniform(0, 6.28, (12, 3))
    waves = rng.uniform(0.02, 0.9, 12)
    centres, speeds = rng.uniform(30, 160, (5, 2)), rng.uniform(-4, 4, (5, 2))
    colours = rng.uniform(0, 255, (5, 3))
    images = []
    for t in range(num_frames):
        frame = np.full((192, 256, 3), 120.0)
        for angle, phase, wave in zip(angles, phases, waves, strict=True):
            along = wave * (np.cos(angle) * (x + t) + np.sin(angle) * y)
            frame += 10 * np.sin(along[..., None] + phase)
        for centre, speed, colour in zip(centres, speeds, colours, strict=True):
            place = centre + t * speed
            frame[(x - place[0]) ** 2 + (y - place[1]) ** 2 < 400] = colour
        pixels = np.clip(frame, 0, 255).astype(np.uint8)
        images.append(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
    return images
