"""Cuts, black and frozen footage against known truth, and clip windows."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from distgan.config import CleanConfig, LimitsConfig
from distgan.data.cleaning import (
    LumaReducer,
    cut_clips,
    is_black,
    is_frozen,
    luma_change,
    scene_score,
    split_segments,
)
from distgan.data.videos import TimedFrame, VideoReader
from tests.video_makers import Pixels, sample_videos, textured, write_video


def segment_lengths(pixels: Pixels, **settings: float) -> tuple[list[int], Counter[str]]:
    counts: Counter[str] = Counter()
    frames = (
        TimedFrame(
            av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p"),
            Fraction(index, 16),
            False,
        )
        for index, image in enumerate(pixels)
    )
    config = CleanConfig.model_validate(settings)
    return [len(list(run)) for run in split_segments(frames, config, counts)], counts


def scenes(*lengths: int) -> Pixels:
    """Runs of frames that differ in brightness and content."""
    levels = [0.3, 1.0, 0.5, 0.8]
    return np.concatenate(
        [
            (textured(n, seed=i) * levels[i % 4]).astype(np.uint8) + np.uint8(20)
            for i, n in enumerate(lengths)
        ]
    )


def test_cuts_where_scenes_change_and_nowhere_else() -> None:
    lengths, counts = segment_lengths(scenes(12, 7, 20, 9))
    assert lengths == [12, 7, 20, 9]
    assert counts == {"segments": 4}


def test_threshold_100_never_cuts() -> None:
    assert segment_lengths(scenes(12, 7), scene_threshold=100)[0] == [19]


def test_a_scene_that_moves_steadily_is_one_segment() -> None:
    assert segment_lengths(textured(40))[0] == [40]


def test_black_frames_are_left_out_and_cut() -> None:
    black = np.random.default_rng(0).integers(0, 6, (5, 64, 96, 3), dtype=np.uint8)
    pixels = np.concatenate([textured(8), black, textured(9)])
    lengths, counts = segment_lengths(pixels)
    assert lengths == [8, 9]
    assert counts["frames_black"] == 5


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "rgb24", "gray"])
def test_luma_is_full_range_for_every_pixel_format(pixel_format: str) -> None:
    for level in (0, 128, 255):
        image = av.VideoFrame.from_ndarray(
            np.full((48, 64, 3), level, dtype=np.uint8), format="rgb24"
        ).reformat(format=pixel_format)
        assert abs(float(LumaReducer()(image).mean()) - level) <= 2, (pixel_format, level)


def test_black_looks_at_the_brightest_two_percent() -> None:
    luma = np.zeros((100, 100), dtype=np.uint8)
    luma[:1] = 255
    assert is_black(luma, 0.06)
    luma[:4] = 255
    assert not is_black(luma, 0.06)


def test_frozen_clips() -> None:
    still = np.repeat(textured(1), 8, axis=0)
    assert is_frozen(still, 0.002)
    assert not is_frozen(textured(8), 0.002)
    assert not is_frozen(still[:1], 0.002)
    assert not is_frozen(still, 0)


@pytest.mark.parametrize(
    ("total", "stored", "step", "starts"),
    [
        (10, 4, 4, [0, 4]),
        (10, 4, 2, [0, 2, 4, 6]),
        (12, 4, 5, [0, 5]),
        (3, 4, 4, []),
        (4, 1, 2, [0, 2]),
    ],
)
def test_clip_windows(total: int, stored: int, step: int, starts: list[int]) -> None:
    frames = [(Fraction(i), np.full((2, 2, 3), i, dtype=np.uint8)) for i in range(total)]
    clips = list(cut_clips(frames, stored, step))
    assert [start for start, _ in clips] == starts
    for start, clip in clips:
        assert clip[:, 0, 0, 0].tolist() == list(range(int(start), int(start) + stored))


def test_the_score_is_that_of_ffmpegs_scdet(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", scenes(6, 6, 6))
    graph = av.filter.Graph()
    with VideoReader(str(path), LimitsConfig()) as reader:
        images = [frame.image for frame in reader.frames()]
    nodes = [
        graph.add("buffer", "video_size=96x64:pix_fmt=yuv420p:time_base=1/25"),
        graph.add("scdet", "threshold=0"),
        graph.add("buffersink"),
    ]
    nodes[0].link_to(nodes[1])
    nodes[1].link_to(nodes[2])
    graph.configure()
    theirs = []
    for image in images:
        nodes[0].push(image)
        theirs.append(float(dict(nodes[2].pull().metadata).get("lavfi.scd.score", "nan")))
    lumas = [image.to_ndarray()[:64] for image in images]
    changes = [0.0, *(luma_change(a, b) for a, b in pairwise(lumas))]
    ours = [0.0, *(scene_score(b, a) for a, b in pairwise(changes))]
    assert np.isfinite(theirs).sum() > 10
    keep = np.isfinite(theirs)
    assert np.allclose(np.array(ours)[keep], np.array(theirs)[keep], atol=0.01)


def test_real_single_shot_videos_are_not_cut() -> None:
    for path in sorted(sample_videos().rglob("*.mkv"))[:3]:
        counts: Counter[str] = Counter()
        with VideoReader(str(path), LimitsConfig()) as reader:
            for run in split_segments(reader.frames(), CleanConfig(), counts):
                list(run)
        assert counts == {"segments": 1}, path.name
