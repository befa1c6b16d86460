"""Frame rate by time, crop and pad geometry, colours."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from distgan.config import LimitsConfig
from distgan.data.formatting import Formatter, scaled_size, select_by_time, square
from distgan.data.videos import DroppedVideoError, TimedFrame, VideoReader
from tests.video_makers import numbered, psnr, read_number, textured, write_video


@pytest.mark.parametrize(("source_hz", "target_hz"), [(30, 8), (24, 12), (25, 24), (10, 25)])
def test_the_nearest_frame_of_each_moment_is_chosen(
    tmp_path: Path, source_hz: int, target_hz: int
) -> None:
    path = write_video(tmp_path / "v.mkv", numbered(60), rate=source_hz)
    with VideoReader(str(path), LimitsConfig()) as reader:
        chosen = [
            (moment, read_number(frame.image.to_ndarray(format="rgb24")))
            for moment, frame in select_by_time(reader.frames(), target_hz)
        ]
    assert len(chosen) == 59 * target_hz // source_hz + 1
    for k, (moment, number) in enumerate(chosen):
        assert moment == Fraction(k, target_hz)
        distance = abs(Fraction(number, source_hz) - moment)
        assert distance <= Fraction(1, 2 * source_hz) + Fraction(1, 1000)  # mkv has milliseconds


def test_uneven_times_and_rate_zero() -> None:
    frames = [TimedFrame(i, Fraction(t), False) for i, t in enumerate(["0", "0.1", "0.5", "1"])]
    assert [f.image for _, f in select_by_time(frames, 4)] == [0, 1, 2, 2, 3]
    assert [f.image for _, f in select_by_time(frames, 0)] == [0, 1, 2, 3]
    assert list(select_by_time([], 4)) == []


def test_sizes_before_crop_and_pad() -> None:
    assert scaled_size(640, 360, Fraction(1), 64, "crop") == (114, 64)
    assert scaled_size(640, 360, Fraction(1), 64, "pad") == (64, 36)
    assert scaled_size(720, 576, Fraction(16, 15), 60, "crop") == (80, 60)
    with pytest.raises(DroppedVideoError, match="aspect"):
        scaled_size(9000, 100, Fraction(1), 64, "crop")


@pytest.mark.parametrize(("height", "width"), [(64, 96), (97, 64), (64, 64)])
def test_crop_keeps_the_centre(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    top, left = (height - 64) // 2, (width - 64) // 2
    assert np.array_equal(square(image, 64), image[top : top + 64, left : left + 64])


def test_pad_adds_black_bars_and_loses_nothing() -> None:
    image = np.full((36, 64, 3), 200, dtype=np.uint8)
    padded = square(image, 64)
    assert np.array_equal(padded[14:50], image)
    assert padded.sum() == image.sum()


def test_a_circle_stays_round_with_oblong_pixels(tmp_path: Path) -> None:
    y, x = np.mgrid[0:120, 0:80]  # pixels twice as wide as high: the disc is 2 high, 1 wide
    disc = (((x - 39.5) * 2) ** 2 + (y - 59.5) ** 2 < 50**2)[..., None] * np.uint8(220)
    frames = np.broadcast_to(disc, (3, 120, 80, 3)).astype(np.uint8)
    path = write_video(tmp_path / "v.mkv", frames, aspect=Fraction(2))
    with VideoReader(str(path), LimitsConfig()) as reader:
        formatter = Formatter(60, "crop", reader.sample_aspect)
        image = formatter(next(reader.frames()).image)
    inside = image[..., 0] > 110
    assert abs(inside.any(0).sum() - inside.any(1).sum()) <= 1
    assert inside.any(0).sum() == pytest.approx(50, abs=2)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotation_turns_anticlockwise(rotation: int) -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:8] = 255  # a bright bar on top
    image = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    turned = Formatter(64, "crop", Fraction(1))(image, rotation)
    bright = {0: turned[:8], 90: turned[:, :8], 180: turned[-8:], -90: turned[:, -8:]}[rotation]
    assert bright.mean() > 250 and turned.mean() < 60


@pytest.mark.parametrize("pixel_format", ["yuv444p", "yuvj444p", "gbrp"])
def test_colours_survive(pixel_format: str) -> None:
    pixels = textured(1, 64, 64)[0]
    image = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
    assert psnr(Formatter(64, "crop", Fraction(1))(image), pixels) > 40


def test_scaling_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    image = av.VideoFrame.from_ndarray(stripes, format="rgb24")
    small = Formatter(32, "crop", Fraction(1))(image)
    assert small.std() < 6 and abs(small.mean() - 127.5) < 3
