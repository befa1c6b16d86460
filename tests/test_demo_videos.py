"""The demo's videos: what the factors promise is what the frames show."""

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from distgan.data import demo
from distgan.errors import UserError


def decode(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.uint8)


def coverage(video: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of each pixel that the shape covers, (T, H, W)."""
    contrast = np.abs(video.astype(np.float64) - demo.BACKGROUND).max(axis=-1)
    return contrast / contrast.max()


def test_files_are_real_videos_close_to_the_rendering(tmp_path: Path) -> None:
    demo.render_demo_videos(str(tmp_path), num_videos=3, seed=5, num_frames=10, frame_rate_hz=8)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["video-00000.mp4", "video-00001.mp4", "video-00002.mp4"]
    for index, name in enumerate(names):
        with av.open(str(tmp_path / name)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv444p")
            assert stream.average_rate == 8
        video = decode(tmp_path / name)
        rendered = demo.render_video(demo.draw_factors(5, index), size=64, num_frames=10)
        assert video.shape == rendered.shape
        assert np.abs(video.astype(int) - rendered).mean() < 2


def test_same_seed_same_bytes_whatever_the_count(tmp_path: Path) -> None:
    for folder, count in (("a", 1), ("b", 2)):
        demo.render_demo_videos(str(tmp_path / folder), num_videos=count, seed=1, num_frames=4)
    demo.render_demo_videos(str(tmp_path / "c"), num_videos=1, seed=2, num_frames=4)
    first = [(tmp_path / folder / "video-00000.mp4").read_bytes() for folder in "abc"]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize("index", range(24))
def test_shapes_have_their_area_speed_and_walls(index: int) -> None:
    factors = demo.draw_factors(3, index)
    size = 128
    cover = coverage(demo.render_video(factors, size=size, num_frames=40))
    area = cover.sum(axis=(1, 2)) / size**2
    assert area == pytest.approx(np.pi * factors.radius**2, rel=0.03)  # so: never cut off
    grid = (np.arange(size) + 0.5) / size
    x = (cover.sum(axis=1) * grid).sum(axis=1) / cover.sum(axis=(1, 2))
    y = (cover.sum(axis=2) * grid).sum(axis=1) / cover.sum(axis=(1, 2))
    assert (x[0], y[0]) == pytest.approx(factors.start, abs=0.005)
    steps = np.hypot(np.diff(x), np.diff(y))
    speed = np.hypot(*factors.velocity)
    assert demo.SPEED[0] <= speed <= demo.SPEED[1]
    assert steps.max() == pytest.approx(speed, abs=0.004)
    assert np.median(steps) == pytest.approx(speed, abs=0.004)


def test_colours_stand_out_and_apart() -> None:
    colours = np.array(list(demo.COLOURS.values()), dtype=float)
    assert np.abs(colours - demo.BACKGROUND).max(axis=1).min() >= demo.CONTRAST
    apart = np.abs(colours[:, None] - colours[None]).max(axis=-1)
    assert apart[~np.eye(len(colours), dtype=bool)].min() > 90


def test_every_shape_and_colour_occurs() -> None:
    factors = [demo.draw_factors(0, index) for index in range(100)]
    assert {f.shape for f in factors} == set(demo.SHAPES)
    assert {f.colour for f in factors} == set(demo.COLOURS)


@pytest.mark.parametrize(("videos", "frames", "size"), [(0, 8, 64), (1, 0, 64), (1, 8, 63)])
def test_impossible_requests_are_refused(
    tmp_path: Path, videos: int, frames: int, size: int
) -> None:
    with pytest.raises(UserError, match="demo"):
        demo.render_demo_videos(
            str(tmp_path), num_videos=videos, seed=0, size=size, num_frames=frames
        )
