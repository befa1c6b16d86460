"""Videos that ask for too much are refused at once, and legal ones of every kind are not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from distgan.config import LimitsConfig
from distgan.data.videos import VideoReader
from tests.legal_clips import NUM_BLOCKS, NUM_CLIPS, clips_of
from tests.tiny import REPOSITORY, one_thread
from tests.video_bombs import BOMBS

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


def write_legal_clips(folder: Path, block: int) -> None:
    """Goes on after an encoder's crash, three times; a clip that crashes it always is an error."""
    command = [sys.executable, "-m", "tests.legal_clips", str(folder), str(block)]
    for _ in range(4):
        done = subprocess.run(
            command, cwd=REPOSITORY, env=one_thread(), capture_output=True, text=True, timeout=200
        )
        if done.returncode >= 0:  # not ended by a signal
            break
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("block", range(NUM_BLOCKS))
def test_200_legal_clips_are_read(block: int, tmp_path: Path) -> None:
    """Codecs, containers, pixel formats, sizes and rates of all kinds; none is refused."""
    write_legal_clips(tmp_path, block)
    refused, clips = [], clips_of(block)
    assert len(clips) == NUM_CLIPS // NUM_BLOCKS
    for name, codec in clips:
        with VideoReader(str(tmp_path / name), LimitsConfig()) as reader:
            found = len(list(reader.frames()))
        if found < 7:
            refused.append((name, codec, found))
    assert not refused
