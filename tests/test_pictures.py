"""Pictures and video files, read back: the right frames at the right places."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from distgan import pictures
from distgan.data import demo


@pytest.fixture(scope="module")
def clips() -> NDArray[np.uint8]:
    return demo.render_clips(5, seed=0, size=32, num_frames=6)


def read_gif(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as gif:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
    return np.stack(frames)


@pytest.mark.parametrize(("size", "expected"), [((32, 48), (32, 48)), ((33, 17), (34, 18))])
def test_mp4_plays_everywhere_and_keeps_the_frames(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    rows, columns = np.mgrid[: size[0], : size[1]]
    still = np.stack([rows * 4, columns * 4, 255 - rows * 4], axis=-1).astype(np.uint8)
    video = np.stack([np.roll(still, shift, axis=1) // 2 + 40 for shift in range(5)])
    path = tmp_path / "folder" / "sample.mp4"
    pictures.write_mp4(str(path), video.astype(np.uint8), 8.0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert read.shape == (5, *expected, 3)
    assert np.abs(read[:, : size[0], : size[1]].astype(int) - video).mean() < 8
    assert [child.name for child in path.parent.iterdir()] == ["sample.mp4"]


def test_mp4_enlarges_small_clips(tmp_path: Path, clips: NDArray[np.uint8]) -> None:
    path = tmp_path / "large.mp4"
    pictures.write_mp4(str(path), clips[0], 8.0, least_size=250)
    with av.open(str(path)) as container:
        assert (container.streams.video[0].height, container.streams.video[0].width) == (256, 256)


def test_gif_keeps_frames_time_and_loops(tmp_path: Path, clips: NDArray[np.uint8]) -> None:
    pictures.write_gif(str(tmp_path / "one.gif"), clips[0], 10.0)
    data = (tmp_path / "one.gif").read_bytes()
    with Image.open(io.BytesIO(data)) as gif:
        assert gif.info["duration"] == 100 and gif.info["loop"] == 0
    read = read_gif(data)
    assert read.shape == clips[0].shape
    assert np.abs(read.astype(int) - clips[0]).max() <= 16


def test_gif_of_clips_is_their_grid(tmp_path: Path, clips: NDArray[np.uint8]) -> None:
    pictures.write_gif(str(tmp_path / "all.gif"), clips, 8.0, least_size=128)
    read = read_gif((tmp_path / "all.gif").read_bytes())
    grid = pictures.enlarge(pictures.grid(clips), 128)
    assert read.shape == grid.shape
    assert np.abs(read.astype(int) - grid).mean() < 4


def test_gif_keeps_small_shapes_colours_over_a_noisy_background() -> None:
    clips = demo.render_clips(9, seed=0, size=32)
    noise = np.random.default_rng(0).normal(0, 8, clips.shape)
    video = pictures.grid(np.clip(np.rint(clips + noise), 0, 255).astype(np.uint8))
    error = np.abs(read_gif(pictures.encode_gif(video, 8.0)).astype(int) - video)
    shape = np.abs(video.astype(int) - demo.BACKGROUND).max(axis=-1) > 120
    assert error[shape].mean() < 6


def test_still_frames_stay_frames(clips: NDArray[np.uint8]) -> None:
    frozen = np.repeat(clips[0][:1], 4, axis=0)
    with Image.open(io.BytesIO(pictures.encode_gif(frozen, 8.0))) as gif:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert sum(durations) == 480  # equal frames may be joined, their time may not be lost


def test_grid_places_clips_row_by_row(clips: NDArray[np.uint8]) -> None:
    grid = pictures.grid(clips, columns=2, gap=3)
    assert grid.shape == (6, 3 * 35 - 3, 2 * 35 - 3, 3)
    np.testing.assert_array_equal(grid[:, 35:67, 35:67], clips[3])
    assert not grid[:, 70:, 35:].any()
    assert pictures.grid(clips[:1]).shape == clips[0].shape


def test_contact_sheet_shows_every_frame_under_its_label(
    tmp_path: Path, clips: NDArray[np.uint8]
) -> None:
    path = tmp_path / "sheet.png"
    pictures.contact_sheet([("real", clips[:3]), ("generated", clips[3:])], str(path))
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    for clip in clips:
        colour = clip.reshape(-1, 3)[clip.reshape(-1, 3).astype(int).sum(axis=1).argmax()]
        assert (sheet == colour).all(axis=-1).any()
    large = pictures.enlarge(clips[4], 64)
    found = [
        (y, x)
        for y in range(sheet.shape[0] - 63)
        for x in range(0, sheet.shape[1] - 63)
        if (sheet[y, x] == large[5][0, 0]).all()
        and np.array_equal(sheet[y : y + 64, x : x + 64], large[5])
    ]
    assert len(found) == 1 and found[0][0] > sheet.shape[0] / 2


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 8, 1), np.uint8), np.zeros((0, 8, 8, 3), "u1")],
)
def test_other_arrays_are_refused(tmp_path: Path, array: NDArray[np.uint8]) -> None:
    for write in (pictures.encode_gif, pictures.encode_mp4):
        with pytest.raises(ValueError, match="expected uint8"):
            write(array, 8.0)
    with pytest.raises(ValueError, match="expected uint8"):
        pictures.contact_sheet([("row", array[None])], str(tmp_path / "sheet.png"))
    with pytest.raises(ValueError, match="no rows"):
        pictures.contact_sheet([], str(tmp_path / "sheet.png"))
    assert not list(tmp_path.iterdir())
