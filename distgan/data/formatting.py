"""Brings frames to the stored form: frame rate, square shape, size, RGB.

Legend of shapes: H height, W width, 3 red, green, blue.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from distgan.data.videos import DroppedVideoError, TimedFrame

Fit = Literal["crop", "pad"]

MAX_ASPECT = 8
"""Longer strips than this (long side over short side) are dropped: scaling one to the target
height would make an image of unbounded width."""

# Antialiased (within 52 dB of Pillow's Lanczos) and the same bits on every CPU.
_SCALING = (
    Interpolation.LANCZOS
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


def select_by_time(
    frames: Iterable[TimedFrame], frame_rate_hz: float
) -> Iterator[tuple[Fraction, TimedFrame]]:
    """For the times start, start + 1 / rate, ...: (that time, the frame shown nearest to it).

    Where the video is slower than `frame_rate_hz`, frames repeat; there is no interpolation. A
    rate of 0 keeps every frame at its own time. Two frames equally near: the earlier one.
    """
    if frame_rate_hz == 0:
        yield from ((frame.time_s, frame) for frame in frames)
        return
    period = 1 / Fraction(frame_rate_hz).limit_denominator(1_000_000)
    previous: TimedFrame | None = None
    wanted = Fraction(0)
    for frame in frames:
        if previous is None:
            wanted = frame.time_s
        else:
            middle = (previous.time_s + frame.time_s) / 2
            while wanted <= middle:
                yield wanted, previous
                wanted += period
        previous = frame
    if previous is not None and wanted <= previous.time_s:
        yield wanted, previous


def scaled_size(
    width: int, height: int, sample_aspect: Fraction, resolution: int, fit: Fit
) -> tuple[int, int]:
    """Width and height, in square pixels, that a frame is scaled to before crop or pad.

    crop: the shorter side becomes `resolution`; pad: the longer one does.

    Raises:
        DroppedVideoError: the frame is a strip beyond `MAX_ASPECT`.
    """
    shown_width = width * sample_aspect
    if not Fraction(1, MAX_ASPECT) <= shown_width / height <= MAX_ASPECT:
        raise DroppedVideoError("videos_over_max_aspect", f"{float(shown_width):.0f}x{height}")
    sides = (shown_width, Fraction(height))
    scale = resolution / (min(sides) if fit == "crop" else max(sides))
    return max(1, round(shown_width * scale)), max(1, round(height * scale))


def square(image_HW3: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """The centre of an image: longer sides are cut, shorter ones get black bars.

    Returns: (resolution, resolution, 3), uint8.
    """
    height, width = image_HW3.shape[:2]
    top, left = max(0, (height - resolution) // 2), max(0, (width - resolution) // 2)
    kept = image_HW3[top : top + resolution, left : left + resolution]
    height, width = kept.shape[:2]
    if (height, width) == (resolution, resolution):
        return np.ascontiguousarray(kept)
    out = np.zeros((resolution, resolution, 3), dtype=np.uint8)
    top, left = (resolution - height) // 2, (resolution - width) // 2
    out[top : top + height, left : left + width] = kept
    return out


class Formatter:
    """Turns decoded frames into upright square RGB images (resolution, resolution, 3), uint8."""

    def __init__(self, resolution: int, fit: Fit, sample_aspect: Fraction) -> None:
        self._resolution = resolution
        self._fit: Fit = fit
        self._sample_aspect = sample_aspect
        self._reformatter = VideoReformatter()

    def __call__(self, image: Any, rotation: int = 0) -> NDArray[np.uint8]:
        """`rotation`: degrees, anticlockwise, that the player turns the frame by.

        Raises:
            DroppedVideoError: the frame is a strip beyond `MAX_ASPECT`.
        """
        width, height = scaled_size(
            image.width, image.height, self._sample_aspect, self._resolution, self._fit
        )
        scaled = self._reformatter.reformat(
            image,
            width=width,
            height=height,
            format="rgb24",
            interpolation=_SCALING,
            threads=1,
        )
        upright = square(np.asarray(scaled.to_ndarray()), self._resolution)
        turns = round(rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(upright, turns)) if turns else upright
