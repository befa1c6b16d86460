"""Finding and decoding videos: order, links, playlists, limits, damage."""

import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from distgan.config import LimitsConfig
from distgan.data.videos import DroppedVideoError, VideoReader, find_videos
from distgan.errors import UserError
from tests.video_makers import numbered, psnr, read_number, textured, write_video


def cause(path: Path, **limits: float) -> str:
    with (
        pytest.raises(DroppedVideoError) as caught,
        VideoReader(str(path), LimitsConfig.model_validate(limits)) as reader,
    ):
        list(reader.frames())
    return caught.value.cause


def test_finds_nested_videos_sorted_and_follows_no_link_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "in", tmp_path / "out"
    for name in ("b/z.MP4", "a.mkv", "b/c/d.webm", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    outside.mkdir()
    (outside / "secret.mp4").write_bytes(b"x")
    (root / "leak.mp4").symlink_to(outside / "secret.mp4")
    (root / "folder").symlink_to(outside)
    (root / "same.mkv").symlink_to(root / "a.mkv")
    os.mkfifo(root / "pipe.mp4")
    found = find_videos(str(root))
    assert found.paths == ["a.mkv", "b/c/d.webm", "b/z.MP4", "same.mkv"]
    assert (found.links_skipped, found.others_skipped) == (2, 2)


def test_input_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*is not a folder"):
        find_videos(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("v.mp4", "libx264"), ("v.avi", "mpeg4"), ("v.webm", "libvpx-vp9"), ("v.gif", "gif")],
)
def test_reads_containers(tmp_path: Path, name: str, codec: str) -> None:
    if codec == "gif":
        pytest.importorskip("PIL.Image").fromarray(textured(1)[0]).save(
            tmp_path / name,
            save_all=True,
            append_images=[pytest.importorskip("PIL.Image").fromarray(textured(2)[1])],
            duration=100,
        )
        expected = 2
    else:
        write_video(tmp_path / name, textured(5), codec=codec)
        expected = 5
    with VideoReader(str(tmp_path / name), LimitsConfig()) as reader:
        frames = list(reader.frames())
    assert len(frames) == expected
    assert all(a.time_s < b.time_s for a, b in pairwise(frames))


def test_playlists_with_video_names_are_unreadable(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.ts", textured(8))
    texts = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video.name}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {video.name}\n",
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert cause(tmp_path / name) == "videos_unreadable", name


def test_limits_that_the_container_tells_stop_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "v.mp4", textured(32))
    monkeypatch.setattr(VideoReader, "_images", lambda self: pytest.fail("decoded"))
    assert cause(path, max_pixels=96 * 64 - 1) == "videos_over_max_pixels"
    assert cause(path, max_frames=31) == "videos_over_max_frames"
    assert cause(path, max_seconds=1.9) == "videos_over_max_seconds"


def test_limits_hold_while_decoding_where_the_container_is_silent(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.h264", textured(32))  # a raw stream: no frames, no duration
    assert cause(path, max_frames=31) == "videos_over_max_frames"
    assert cause(path, max_seconds=0.5) == "videos_over_max_seconds"
    assert cause(path, max_cpu_seconds=1e-9) == "videos_over_max_cpu_seconds"


def test_sixteen_thousand_pixels_squared_are_refused(tmp_path: Path) -> None:
    # Some kilobytes that would decode to 256 MB: one black PNG frame.
    path = tmp_path / "bomb.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 16_000
        stream.pix_fmt = "gray"
        image = av.VideoFrame.from_ndarray(np.zeros((16_000, 16_000), np.uint8), format="gray")
        image.pts = 0
        container.mux(stream.encode(image))
        container.mux(stream.encode())
    assert path.stat().st_size < 1_000_000
    assert cause(path) == "videos_over_max_pixels"


def test_a_larger_frame_in_mid_stream_is_not_decoded(tmp_path: Path) -> None:
    small = write_video(tmp_path / "a.h264", textured(8, 64, 64)).read_bytes()
    large = write_video(tmp_path / "b.h264", textured(8, 256, 256)).read_bytes()
    joined = tmp_path / "joined.h264"
    joined.write_bytes(small + large)
    with VideoReader(str(joined), LimitsConfig(max_pixels=64 * 64)) as reader:
        sizes = {frame.image.width for frame in reader.frames()}
        assert sizes == {64}
        assert reader.frames_damaged > 0
    with VideoReader(str(joined), LimitsConfig()) as reader:
        starts = [f.starts_segment for f in reader.frames()]
    assert sum(starts) == 1, "another frame size begins another segment"


@pytest.mark.parametrize("ending", ["mkv", "ts"])
@pytest.mark.parametrize(("share", "is_cut_short"), [(1.0, False), (0.5, True)])
def test_half_a_video_is_known_as_such(
    ending: str, share: float, is_cut_short: bool, tmp_path: Path
) -> None:
    """Where the container says at its beginning how long it is: a transport stream does not."""
    path = write_video(tmp_path / f"v.{ending}", textured(64, 160, 120))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with VideoReader(str(path), LimitsConfig()) as reader:
        assert len(list(reader.frames())) > 16
        assert reader.is_cut_short == (is_cut_short and ending == "mkv")


def test_damage_in_the_middle_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", numbered(60))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 100] = np.random.default_rng(0).bytes(100)
    path.write_bytes(data)
    with VideoReader(str(path), LimitsConfig()) as reader:
        frames = list(reader.frames())
        assert reader.frames_damaged > 0
    assert 20 < len(frames) < 60
    assert any(frame.starts_segment for frame in frames)
    for frame in frames:  # what is left shows what it should
        number = read_number(frame.image.to_ndarray(format="rgb24"))
        assert number == round(frame.time_s * 16)


def test_flipped_bits_seldom_reach_the_frames_that_are_kept(tmp_path: Path) -> None:
    clean = textured(48, 160, 120)
    data = write_video(tmp_path / "v.mp4", clean).read_bytes()
    rng = np.random.default_rng(0)
    kept = wrong = 0
    for _ in range(12):
        flipped = bytearray(data)
        flipped[rng.integers(data.index(b"mdat") + 900, data.index(b"moov"))] ^= 1
        (tmp_path / "flipped.mp4").write_bytes(flipped)
        with VideoReader(str(tmp_path / "flipped.mp4"), LimitsConfig()) as reader:
            for frame in reader.frames():
                image = frame.image.to_ndarray(format="rgb24")
                kept += 1
                wrong += psnr(image, clean[round(frame.time_s * 16)]) < 28
    assert kept > 12 * 48 / 2
    # A bit may only shift a colour. A decoder left to itself spoils one frame in six.
    assert wrong < 0.06 * kept


def test_a_gap_in_time_begins_a_segment(tmp_path: Path) -> None:
    times = [Fraction(i, 16) + (5 if i >= 4 else 0) for i in range(8)]
    path = write_video(tmp_path / "v.mkv", textured(8), times=times)
    with VideoReader(str(path), LimitsConfig()) as reader:
        assert [f.starts_segment for f in reader.frames()] == [False] * 4 + [True] + [False] * 3


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 50])
def test_garbage_is_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    assert cause(tmp_path / "v.mp4") == "videos_unreadable"
