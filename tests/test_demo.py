"""The demo, as a newcomer runs it: all its parts, its resumption, and the quality it promises."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import REPOSITORY, launch


def quality(folder: Path) -> dict[str, tuple[float, float]]:
    """Row name -> (proxy distance, share of valid clips)."""
    rows = json.loads((folder / "quality.json").read_text())
    return {row["clips"]: (row["proxy_frechet"], row["valid_share"]) for row in rows}


@pytest.mark.timeout(600)  # a minute each on an idle old CPU
def test_short_demo_makes_everything_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    (folder / "data" / ".prepare").mkdir(parents=True)  # as a demo that was killed leaves it
    short = ("train.max_steps=4", "log.sample_interval_steps=4", "log.proxy_interval_steps=4")
    done = launch("demo", "--output", str(folder), *short, timeout_s=280)
    assert done.returncode == 0, done.stderr
    assert "tensorboard --logdir" in done.stdout
    sheet = folder / "contact_sheet.png"
    assert str(sheet) in done.stdout
    assert Image.open(sheet).size[0] > 500
    assert len(list((folder / "samples").glob("video_*.mp4"))) == 256
    shares = {name: share for name, (_, share) in quality(folder).items()}
    assert shares["real"] >= 0.98
    assert shares["real, frames shuffled"] <= 0.1
    assert shares["real, frozen"] == shares["untrained generator"] == shares["noise"] == 0
    distances = {name: distance for name, (distance, _) in quality(folder).items()}
    assert distances["real"] < distances["real, frozen"] < distances["noise"]
    assert distances["real"] < distances["real, frames shuffled"]
    done = launch("demo", "--output", str(folder), *short, "train.max_steps=5", timeout_s=280)
    assert done.returncode == 0, done.stderr
    assert "from step 4" in done.stderr + done.stdout


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_whole_demo_reaches_its_quality(tmp_path: Path) -> None:
    """Minutes of training on all cores: at least 0.6 of the generated clips are valid."""
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), "demo", "--output", str(folder)],
        capture_output=True,
        text=True,
        timeout=2300,
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    distance, share = quality(folder)["generated"]
    assert share >= 0.6, done.stdout
    assert distance < 0.1 * quality(folder)["untrained generator"][0]
