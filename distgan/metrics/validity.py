"""Is a clip one that the demo could have rendered? Checked frame by frame, as numbers.

A valid clip shows exactly one solid blob of plausible size in every frame, of one steady colour,
that moves at a plausible speed and turns only at walls. Each rule tolerates mild softness and
noise; `validity_report` tells which rules the other clips break. Lengths are shares of the frame's
width. Legend: N clips, T frames, H height, W width, M = N * T frames.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distgan.data.demo import BACKGROUND, CONTRAST, RADIUS, SPEED

_EDGE_LEVEL = 0.3  # contrast, as a share of a full shape's, that belongs to a blob
_CORE_LEVEL = 0.7  # contrast of its solid part
_SPECK = 0.006  # blobs below this share of the frame are ignored: 6 pixels at 32
_AREA = (0.6 * np.pi * RADIUS[0] ** 2, 1.5 * np.pi * RADIUS[1] ** 2)
_AREA_CHANGE = 0.25  # largest departure from the clip's median area
_SOLID_SHARE = 0.45  # least share of the blob that is core; mush has none
_COLOUR_DRIFT = 0.12  # largest departure of a frame's colour from the clip's, of the full range
_COLOUR_SPREAD = 0.15  # largest deviation of colour within a frame's core, of the full range
_MEDIAN_STEP = (0.75 * SPEED[0], 1.25 * SPEED[1])
_LARGEST_STEP = 1.4 * SPEED[1]  # two frames of the slowest go about as far
_LARGEST_TURN = 1.0 * SPEED[1]  # change of step, per axis, away from walls
_WALL = 1.1 * SPEED[1]  # a shape turns at most this far from a wall: a frame's travel

RULES = ("one_blob", "size", "solid", "colour", "speed", "path")


@dataclass(frozen=True)
class _Blobs:
    """The largest blob of each frame; frames without a blob hold zeros."""

    count: NDArray[np.int64]
    """Blobs larger than a speck (N, T)."""
    area: NDArray[np.float64]
    """Share of the frame (N, T)."""
    core_share: NDArray[np.float64]
    """Share of the blob that is solid (N, T)."""
    centre: NDArray[np.float64]
    """Centre (x, y), weighted by contrast (N, T, 2)."""
    reach: NDArray[np.float64]
    """Distances from left, top, right, bottom wall (N, T, 4)."""
    colour: NDArray[np.float64]
    """Mean colour of the core, in [0, 1] (N, T, 3)."""
    spread: NDArray[np.float64]
    """Deviation of the core's colour, strongest channel (N, T)."""


def valid_clips(video: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which clips are valid.

    Args:
        video: uint8 RGB (N, T, H, W, 3) with T >= 2 and H = W >= 16, one frame a step of the demo.

    Returns:
        Booleans (N,).

    Raises:
        ValueError: another dtype or shape.
    """
    return _all(_rules(video))


def validity_report(video: NDArray[np.uint8]) -> dict[str, float]:
    """The share of valid clips, and per rule the share of clips that break it.

    Keys: `valid`, then `breaks_RULE` for each of `RULES`. A clip may break several rules; where a
    frame has not exactly one blob, the other rules look at its largest. Input as `valid_clips`.
    """
    kept = _rules(video)
    report = {"valid": float(_all(kept).mean())}
    return report | {f"breaks_{rule}": float(1 - kept[rule].mean()) for rule in RULES}


def _rules(video: NDArray[np.uint8]) -> dict[str, NDArray[np.bool_]]:
    """For each rule, which clips keep it (N,)."""
    blobs = _find_blobs(video)
    median_area = np.median(blobs.area, axis=1)
    area_change = np.abs(blobs.area - median_area[:, None]).max(axis=1)
    mean_colour = blobs.colour.mean(axis=1, keepdims=True)
    drift = np.abs(blobs.colour - mean_colour).max(axis=(1, 2))
    step = np.diff(blobs.centre, axis=1)
    length = np.hypot(step[..., 0], step[..., 1])
    median_step = np.median(length, axis=1)
    return {
        "one_blob": (blobs.count == 1).all(axis=1),
        "size": (blobs.area >= _AREA[0]).all(axis=1)
        & (blobs.area <= _AREA[1]).all(axis=1)
        & (area_change <= _AREA_CHANGE * median_area),
        "solid": (blobs.core_share >= _SOLID_SHARE).all(axis=1),
        "colour": (drift <= _COLOUR_DRIFT) & (blobs.spread <= _COLOUR_SPREAD).all(axis=1),
        "speed": (length <= _LARGEST_STEP).all(axis=1)
        & (median_step >= _MEDIAN_STEP[0])
        & (median_step <= _MEDIAN_STEP[1]),
        "path": _turns_only_at_walls(step, blobs.reach),
    }


def _all(kept: dict[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    return np.asarray(np.stack(list(kept.values())).all(axis=0))


def _turns_only_at_walls(
    step: NDArray[np.float64], reach: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether steps (N, T - 1, 2) change direction only where a wall is near (N,)."""
    turn = np.abs(np.diff(step, axis=1)) > _LARGEST_TURN  # (N, T - 2, 2), x and y
    at_wall = np.minimum(reach[..., :2], reach[..., 2:]) <= _WALL  # (N, T, 2), x and y
    excused = at_wall[:, :-2] | at_wall[:, 1:-1] | at_wall[:, 2:]
    return np.asarray((~turn | excused).all(axis=(1, 2)))


def _find_blobs(video: NDArray[np.uint8]) -> _Blobs:
    """Measures the largest blob of every frame."""
    if video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] != 3 or video.shape[1] < 2:
        raise ValueError(f"expected uint8 (N, T >= 2, H, W, 3), not {video.dtype} {video.shape}")
    num_clips, num_frames, height, width = video.shape[:4]
    if height != width or width < 16:
        raise ValueError(f"expected square frames of at least 16 pixels, not {height}x{width}")
    frames = video.reshape(-1, height, width, 3)
    contrast = _contrast(frames)
    count, blob = _largest_blob(contrast >= _EDGE_LEVEL)
    core = blob & (contrast >= _CORE_LEVEL)
    area, core_area = blob.sum(axis=(1, 2)), core.sum(axis=(1, 2))
    centre, reach = _place(blob, np.where(blob, np.minimum(contrast, 1.0), 0.0))
    colour, spread = _colour(frames, core)
    clip = (num_clips, num_frames)
    return _Blobs(
        count=count.reshape(clip),
        area=(area / (height * width)).reshape(clip),
        core_share=(core_area / np.maximum(area, 1)).reshape(clip),
        centre=centre.reshape(*clip, 2),
        reach=reach.reshape(*clip, 4),
        colour=colour.reshape(*clip, 3),
        spread=spread.reshape(clip),
    )


def _contrast(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Distance from the background, 1 inside any of the demo's shapes or more (M, H, W)."""
    difference = np.abs(frames - np.array(BACKGROUND, dtype=np.float64))
    contrast: NDArray[np.float64] = difference.max(axis=-1) / CONTRAST
    return contrast


def _largest_blob(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Blobs above a speck's size per frame (M,), and the mask of the largest one (M, H, W)."""
    within_frames = np.zeros((3, 3, 3), dtype=bool)
    within_frames[1] = True  # the eight neighbours, none in other frames: one call labels all
    labels, num_labels = ndimage.label(mask, structure=within_frames)
    area = np.bincount(labels.ravel(), minlength=num_labels + 1)
    frame_of = np.zeros(num_labels + 1, dtype=np.int64)
    inside = np.nonzero(labels)
    frame_of[labels[inside]] = inside[0]
    area[0] = 0  # the background's label
    large = area > _SPECK * mask.shape[1] * mask.shape[2]
    count = np.bincount(frame_of[large], minlength=len(mask))
    largest = np.full(len(mask), -1)
    by_size = np.argsort(area[1:], kind="stable") + 1
    largest[frame_of[by_size]] = by_size  # the last one written, the largest, stays
    return count, labels == largest[:, None, None]


def _place(
    blob: NDArray[np.bool_], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre (M, 2) and distances from left, top, right, bottom wall (M, 4), in widths."""
    size = blob.shape[-1]
    middle = (np.arange(size) + 0.5) / size
    total = np.maximum(weight.sum(axis=(1, 2)), 1e-9)
    x = (weight.sum(axis=1) * middle).sum(axis=1) / total
    y = (weight.sum(axis=2) * middle).sum(axis=1) / total
    columns, rows = np.asarray(blob.any(axis=1)), np.asarray(blob.any(axis=2))
    gaps = [side.argmax(axis=1) for side in (columns, rows, columns[:, ::-1], rows[:, ::-1])]
    return np.stack([x, y], axis=1), np.stack(gaps, axis=1) / size


def _colour(
    frames: NDArray[np.uint8], core: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean colour of the core (M, 3) and its strongest channel's deviation (M,), in [0, 1]."""
    values = np.where(core[..., None], frames / 255.0, 0.0)
    pixels = np.maximum(core.sum(axis=(1, 2)), 1)[:, None]
    mean = values.sum(axis=(1, 2)) / pixels
    variance = (values**2).sum(axis=(1, 2)) / pixels - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0)).max(axis=1)
