"""Videos that ask for too much are refused at once, and legal ones of every kind are not."""

import itertools
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from distgan.config import LimitsConfig
from distgan.data.videos import VideoReader
from tests.tiny import REPOSITORY, one_thread
from tests.video_bombs import BOMBS
from tests.video_makers import textured

SECONDS, MEGABYTES = 2, 128


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each bomb in one worker process, which has to outlive them all."""
    folder = tmp_path_factory.mktemp("bombs")
    files = [str(make(folder)) for make in BOMBS.values()]
    command = [sys.executable, "-m", "tests.bomb_worker", *files]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=one_thread(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(BOMBS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon_and_takes_little_memory(
    name: str, outcomes: dict[str, dict[str, Any]]
) -> None:
    outcome = outcomes[name]
    assert outcome["cause"].startswith("videos_") and outcome["detail"] and not outcome["clips"]
    assert outcome["cpu_seconds"] < SECONDS, outcome  # not the clock's: others work here as well
    assert outcome["grown"] < MEGABYTES * 2**20, outcome


def test_there_are_bombs_of_ten_kinds_and_each_limit_says_its_name(
    outcomes: dict[str, dict[str, Any]],
) -> None:
    assert len(outcomes) >= 10
    causes = {name: outcome["cause"] for name, outcome in outcomes.items()}
    assert causes["png_16k"] == causes["gif_65535"] == "videos_over_max_pixels"
    assert causes["nine_hundred_tracks"] == causes["packed_header"] == "videos_unreadable"
    assert causes["long_black_4k"] == causes["claims_5_frames_of_many"] == "videos_over_max_frames"


def test_the_bombs_would_go_off(tmp_path: Path) -> None:
    """Without the project's limits, FFmpeg makes a large frame of a small file."""
    path = BOMBS["png_16k_that_claims_64"](tmp_path)
    assert path.stat().st_size < 300_000
    with av.open(str(path)) as container:
        (frame,) = container.decode(container.streams.video[0])
    assert frame.width * frame.height == 16_000**2


KINDS = (
    ("libx264", "mp4", "yuv420p"), ("libx264", "mov", "yuv444p"), ("libx264", "mkv", "yuv422p10le"),
    ("libx264", "ts", "yuv420p"), ("libx264", "flv", "yuv420p"), ("libx264", "m4v", "yuv420p"),
    ("libx264", "h264", "yuv420p"), ("libx264rgb", "mkv", "rgb24"), ("libx265", "mp4", "yuv420p"),
    ("libvpx", "webm", "yuv420p"), ("libvpx-vp9", "webm", "yuv420p"),
    ("libsvtav1", "mp4", "yuv420p"), ("mpeg4", "avi", "yuv420p"), ("mpeg4", "mp4", "yuv420p"),
    ("mpeg2video", "mpg", "yuv420p"), ("mpeg2video", "ts", "yuv422p"),
    ("mpeg1video", "mpeg", "yuv420p"), ("mjpeg", "avi", "yuvj420p"), ("mjpeg", "mov", "yuvj444p"),
    ("png", "mov", "rgb24"), ("png", "avi", "rgba"), ("ffv1", "mkv", "yuv420p"),
    ("ffv1", "avi", "gray"), ("huffyuv", "avi", "yuv422p"), ("ffvhuff", "nut", "yuv420p"),
    ("rawvideo", "avi", "bgr24"), ("rawvideo", "nut", "yuv420p"),
    ("gif", "gif", "rgb8"), ("prores_ks", "mov", "yuv422p10le"), ("wmv2", "wmv", "yuv420p"),
    ("wmv1", "asf", "yuv420p"), ("msmpeg4", "avi", "yuv420p"), ("flv", "flv", "yuv420p"),
    ("utvideo", "avi", "yuv420p"), ("qtrle", "mov", "rgb24"),
    ("rawvideo", "y4m", "yuv420p"), ("mpeg2video", "vob", "yuv420p"),
)  # fmt: skip
SIZES = ((64, 48), (98, 50), (16, 96), (128, 128), (46, 34), (320, 180))
RATES = (Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(50))
NUM_CLIPS = 200
CASES = tuple(
    (*kind, size, rate)
    for kind, size, rate in itertools.islice(
        zip(
            itertools.cycle(KINDS),
            itertools.cycle(SIZES),
            itertools.cycle(RATES),
            strict=False,
        ),
        NUM_CLIPS,
    )
)


def write_clip(
    path: Path, codec: str, pixel_format: str, size: tuple[int, int], rate: Fraction, number: int
) -> None:
    """Eight frames; B-frames, interlaced fields, gaps in time and sound, each in some of them."""
    width, height = size
    if codec == "libsvtav1":
        width, height = max(width, 64), max(height, 64)  # or the encoder crashes
    if codec == "mpeg4":
        rate = Fraction(round(rate))  # its clock is coarse
    if codec in ("mpeg1video", "mpeg2video") or path.suffix in (".flv", ".mxf"):
        rate = RATES[number % 3]
    with av.open(str(path), "w", format="yuv4mpegpipe" if path.suffix == ".y4m" else None) as file:
        stream: Any = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "bf": str(number % 3)}
            if number % 4 == 1 and height % 4 == 0:
                stream.options |= {"x264-params": "interlaced=1:tff=1"}
        if codec == "libsvtav1":
            stream.options = {"preset": "13"}
        if codec in ("libvpx", "libvpx-vp9"):
            stream.options = {"cpu-used": "8", "deadline": "realtime"}
        frames = textured(2, width, height)
        for place in range(8):
            image = av.VideoFrame.from_ndarray(np.roll(frames[place % 2], place, 1), format="rgb24")
            image = image.reformat(format=pixel_format)
            image.pts, image.time_base = place, 1 / rate
            file.mux(stream.encode(image))
        file.mux(stream.encode())


@pytest.mark.parametrize("block", range(4))
def test_200_legal_clips_are_read(block: int, tmp_path: Path) -> None:
    """Codecs, containers, pixel formats, sizes and rates of all kinds; none is refused."""
    refused = []
    cases = list(enumerate(CASES))[block::4]
    assert len(cases) == NUM_CLIPS // 4
    for number, (codec, ending, pixel_format, size, rate) in cases:
        path = tmp_path / f"{number}.{ending}"
        write_clip(path, codec, pixel_format, size, rate, number)
        with VideoReader(str(path), LimitsConfig()) as reader:
            found = len(list(reader.frames()))
        if found < 7:
            refused.append((path.name, codec, size, rate, found))
    assert not refused
