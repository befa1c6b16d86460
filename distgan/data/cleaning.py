"""What is kept of a video: cuts at scene changes, no black frames, no frozen clips.

Cuts and black frames are judged on small luma images of every frame, frozen clips on the finished
clip. Legend of shapes: T frames, H height, W width, 3 red, green, blue.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from distgan.config import CleanConfig
from distgan.data.videos import TimedFrame

Pixels = NDArray[np.uint8]

_ANALYSIS_SIDE = 160
"""Longest side of the small luma images, in pixels: averages noise away, keeps whole scenes."""

_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class LumaReducer:
    """Makes small full-range luma images (H, W), uint8, of decoded frames."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, image: Any) -> Pixels:
        scale = min(1.0, _ANALYSIS_SIDE / max(image.width, image.height))
        small = self._reformatter.reformat(
            image,
            width=max(1, round(image.width * scale)),
            height=max(1, round(image.height * scale)),
            format="gray",
            interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
            threads=1,
        )
        return np.asarray(small.to_ndarray())


def is_black(luma_HW: Pixels, black_level: float) -> bool:
    """Whether the 98th percentile of the luma lies below `black_level` (share of white)."""
    return bool(np.percentile(luma_HW, 98, method="lower") < black_level * 255)


def luma_change(a_HW: Pixels, b_HW: Pixels) -> float:
    """Mean absolute difference on scdet's scale, 0 to (just below) 100."""
    if a_HW.shape != b_HW.shape:
        return 0.0
    return float(np.abs(a_HW.astype(np.int16) - b_HW).mean()) * 100 / 256


def scene_score(change: float, previous_change: float) -> float:
    """FFmpeg's scdet: the change, or how much it exceeds the one before, if that is less.

    Steady fast motion has a large change from frame to frame and still scores low.
    """
    return min(change, abs(change - previous_change))


def split_segments(
    frames: Iterable[TimedFrame], config: CleanConfig, counts: Counter[str]
) -> Iterator[Iterator[TimedFrame]]:
    """Runs of frames without a cut, gap or black frame, each to be read before the next.

    Counts `segments` and `frames_black`.
    """
    labelled = _label_segments(frames, config, counts)
    for _, run in groupby(labelled, key=lambda pair: pair[0]):
        counts["segments"] += 1
        yield (frame for _, frame in run)


def _label_segments(
    frames: Iterable[TimedFrame], config: CleanConfig, counts: Counter[str]
) -> Iterator[tuple[int, TimedFrame]]:
    reduce = LumaReducer()
    previous_luma: Pixels | None = None
    previous_change = 0.0
    segment = 0
    for frame in frames:
        luma = reduce(frame.image)
        change = 0.0 if previous_luma is None else luma_change(previous_luma, luma)
        is_cut = scene_score(change, previous_change) >= config.scene_threshold
        segment += is_cut or frame.starts_segment
        previous_luma, previous_change = luma, change
        if is_black(luma, config.black_level):
            counts["frames_black"] += 1
            segment += 1
            continue
        yield segment, frame


def cut_clips(
    frames: Iterable[tuple[Fraction, Pixels]], stored_frames: int, step: int
) -> Iterator[tuple[Fraction, Pixels]]:
    """Clips of `stored_frames` frames that start every `step` frames: (start time, THW3).

    What is left at the end is too short for a clip and ends here.
    """
    window: deque[tuple[Fraction, Pixels]] = deque()
    skip = 0
    for frame in frames:
        if skip:
            skip -= 1
            continue
        window.append(frame)
        if len(window) == stored_frames:
            yield window[0][0], np.stack([pixels for _, pixels in window])
            for _ in range(min(step, stored_frames)):
                window.popleft()
            skip = max(0, step - stored_frames)


def is_frozen(clip_THW3: Pixels, frozen_difference: float) -> bool:
    """Whether the mean absolute luma change per frame is below this share of white.

    A clip of one frame is never frozen.
    """
    if len(clip_THW3) < 2:
        return False
    luma_THW = clip_THW3 @ _LUMA_WEIGHTS
    return bool(np.abs(np.diff(luma_THW, axis=0)).mean() < frozen_difference * 255)
