"""The demo's videos: one bright shape on a dark background, flying straight, bouncing off walls.

No external data, and every factor is known: `distgan.metrics.validity` checks clips against the
numbers below. Lengths are shares of the frame's width, so they hold at any resolution. Speeds lie
in a narrow range, and two frames' travel is about as long as the longest step: shuffled frames give
themselves away. Legend: N clips, T frames, H height, W width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distgan import storage
from distgan.errors import UserError
from distgan.pictures import encode_mp4
from distgan.seeding import numpy_generator

SHAPES = ("disc", "square", "triangle")
COLOURS: dict[str, tuple[int, int, int]] = {
    "coral": (240, 76, 70),
    "amber": (245, 186, 48),
    "green": (72, 225, 104),
    "blue": (74, 104, 245),
}
BACKGROUND = (16, 18, 30)
CONTRAST = 205.0
"""Each colour differs from the background by at least this much in its strongest channel."""

RADIUS = (0.17, 0.21)
"""Range of the radius of the disc with the shape's area, in frame widths."""
SPEED = (0.056, 0.081)
"""Range of the step per frame, in frame widths: 1.8 to 2.6 pixels at 32."""

_CORNER = 0.18  # radius of the rounded corners, in shape radii
_SMALLEST_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Factors:
    """All that a demo video shows; lengths in frame widths, velocity per frame, y downwards."""

    shape: str
    colour: str
    radius: float
    start: tuple[float, float]
    """Centre of mass in frame 0, (x, y)."""
    velocity: tuple[float, float]


def draw_factors(seed: int, index: int) -> Factors:
    """The factors of video `index`; they depend on nothing but the two numbers."""
    rng = numpy_generator(seed, "demo video", index=index)
    shape = SHAPES[rng.integers(len(SHAPES))]
    radius = rng.uniform(*RADIUS)
    low, high = _limits(shape, radius)
    start = low + rng.uniform(size=2) * (high - low)
    speed, angle = rng.uniform(*SPEED), rng.uniform(0, 2 * np.pi)
    return Factors(
        shape=shape,
        colour=list(COLOURS)[rng.integers(len(COLOURS))],
        radius=float(radius),
        start=(float(start[0]), float(start[1])),
        velocity=(float(speed * np.cos(angle)), float(speed * np.sin(angle))),
    )


def render_video(factors: Factors, *, size: int, num_frames: int) -> NDArray[np.uint8]:
    """Anti-aliased frames of one video: uint8 RGB (T, size, size, 3)."""
    centre_T2 = _positions(factors, num_frames) * size
    pixel = np.arange(size) + 0.5
    x_THW = pixel[None, None, :] - centre_T2[:, 0, None, None]
    y_THW = pixel[None, :, None] - centre_T2[:, 1, None, None]
    distance_THW = _signed_distance(factors.shape, x_THW, y_THW, factors.radius * size)
    cover_THW1 = np.clip(0.5 - distance_THW, 0.0, 1.0)[..., None]
    background, colour = np.array(BACKGROUND), np.array(COLOURS[factors.colour])
    frames: NDArray[np.uint8] = np.rint(background + cover_THW1 * (colour - background)).astype(
        np.uint8
    )
    return frames


def render_clips(
    num_clips: int, *, seed: int, size: int = 64, num_frames: int = 8
) -> NDArray[np.uint8]:
    """The first `num_clips` videos of a seed, unencoded: uint8 RGB (N, T, size, size, 3)."""
    factors = [draw_factors(seed, index) for index in range(num_clips)]
    return np.stack([render_video(f, size=size, num_frames=num_frames) for f in factors])


def render_demo_videos(
    folder: str,
    *,
    num_videos: int,
    seed: int,
    size: int = 64,
    num_frames: int = 24,
    frame_rate_hz: float = 8.0,
) -> None:
    """Writes video-00000.mp4 ... into `folder`: H.264 4:4:4, visually lossless.

    Video k is the same whatever `num_videos` is. Size is in pixels, even (H.264) and at least 16.

    Raises:
        UserError: a count is not positive, or the size cannot be encoded.
    """
    if num_videos < 1 or num_frames < 1:
        raise UserError(f"demo: {num_videos} videos of {num_frames} frames: both must be positive")
    if size < _SMALLEST_SIZE or size % 2:
        raise UserError(f"demo: size {size} must be even and at least {_SMALLEST_SIZE} pixels")
    for index in range(num_videos):
        video = render_video(draw_factors(seed, index), size=size, num_frames=num_frames)
        data = encode_mp4(video, frame_rate_hz, crf=8, pixel_format="yuv444p")
        storage.write_bytes(storage.join(folder, f"video-{index:05d}.mp4"), data)


def _positions(factors: Factors, num_frames: int) -> NDArray[np.float64]:
    """Centres (T, 2): straight lines folded back at the walls."""
    low, high = _limits(factors.shape, factors.radius)
    span = high - low
    travelled = np.arange(num_frames)[:, None] * np.array(factors.velocity)
    unfolded = (np.array(factors.start) - low + travelled) % (2 * span)
    centres: NDArray[np.float64] = low + np.where(unfolded < span, unfolded, 2 * span - unfolded)
    return centres


def _limits(shape: str, radius: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest centre, each (x, y), that keep the whole shape in the frame."""
    side, top, bottom = _extents(shape)
    low = radius * np.array([side, top])
    return low, 1.0 - radius * np.array([side, bottom])


def _extents(shape: str) -> tuple[float, float, float]:
    """Reach to either side, up and down from the centre of mass, in radii."""
    if shape == "disc":
        return 1.0, 1.0, 1.0
    if shape == "square":
        half = _half_side("square")
        return half, half, half
    half = _half_side("triangle")
    core = half - np.sqrt(3) * _CORNER  # half side of the triangle that the corners roll around
    return core + _CORNER, 2 * core / np.sqrt(3) + _CORNER, half / np.sqrt(3)


def _half_side(shape: str) -> float:
    """Half a side, corners not yet rounded, in radii: the rounded shape has the disc's area."""
    if shape == "square":
        return float(np.sqrt(np.pi + (4 - np.pi) * _CORNER**2) / 2)
    return float(np.sqrt((np.pi + (3 * np.sqrt(3) - np.pi) * _CORNER**2) / np.sqrt(3)))


def _signed_distance(
    shape: str, x: NDArray[np.float64], y: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Distance to the shape's edge in pixels, negative inside; y downwards.

    Formulas for the box and the equilateral triangle: Inigo Quilez, "2D distance functions".
    """
    if shape == "disc":
        return np.hypot(x, y) - radius
    corner, half = _CORNER * radius, _half_side(shape) * radius
    if shape == "square":
        over_x, over_y = np.abs(x) - (half - corner), np.abs(y) - (half - corner)
        outside = np.hypot(np.maximum(over_x, 0), np.maximum(over_y, 0))
        box: NDArray[np.float64] = outside + np.minimum(np.maximum(over_x, over_y), 0) - corner
        return box
    k, core = np.sqrt(3), half - np.sqrt(3) * corner
    u, v = np.abs(x) - core, core / k - y
    flip = u + k * v > 0
    u, v = np.where(flip, (u - k * v) / 2, u), np.where(flip, (-k * u - v) / 2, v)
    u = u - np.clip(u, -2 * core, 0)
    triangle: NDArray[np.float64] = -np.hypot(u, v) * np.sign(v) - corner
    return triangle
