"""Small videos with known content, shared by the tests of prepare."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def textured(num_frames: int, width: int = 96, height: int = 64, *, seed: int = 0) -> Pixels:
    """A smooth random texture that drifts: (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    angle, phase = rng.uniform(0, 2 * np.pi, 6), rng.uniform(0, 2 * np.pi, (6, 3))
    wave = rng.uniform(0.05, 0.35, 6)
    y, x = np.mgrid[0:height, 0:width]
    frames = np.zeros((num_frames, height, width, 3))
    for t in range(num_frames):
        for i in range(6):
            along = wave[i] * (np.cos(angle[i]) * (x + 2 * t) + np.sin(angle[i]) * (y + t))
            frames[t] += np.sin(along[..., None] + phase[i])
    return np.clip(128 + 28 * frames, 0, 255).astype(np.uint8)


def numbered(num_frames: int, size: int = 64) -> Pixels:
    """Frames that carry their number: eight columns, its bits in two greys too near for a cut."""
    bits = (np.arange(num_frames)[:, None] >> np.arange(8)) & 1
    columns = np.repeat(bits * 20 + 100, size // 8, axis=1).astype(np.uint8)
    return np.broadcast_to(columns[:, None, :, None], (num_frames, size, size, 3)).copy()


def read_number(frame: Pixels) -> int:
    """The number in a frame of `numbered`, of any size."""
    columns = frame.mean((0, 2)).reshape(8, -1).mean(1) > 110
    return int((columns << np.arange(8)).sum())


def write_video(
    path: Path,
    frames: Pixels,
    *,
    rate: int = 16,
    codec: str = "libx264",
    times: Sequence[Fraction] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Encodes uint8 THW3 frames nearly without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "8", "preset": "veryfast", "g": "12"}
        stream.codec_context.time_base = Fraction(1, 960)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for index, pixels in enumerate(frames):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            moment = times[index] if times else Fraction(index, rate)
            image.pts, image.time_base = int(moment * 960), Fraction(1, 960)
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, of 8-bit pixels."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def sample_videos() -> Path:
    """The folder of real videos; skips the test if there is none."""
    folder = os.environ.get("DISTGAN_SAMPLE_VIDEOS")
    if not folder:
        pytest.skip("set DISTGAN_SAMPLE_VIDEOS to a folder of real videos")
    return Path(folder)
