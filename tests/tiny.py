"""The smallest configuration and data that exercise everything, and launch.py as users run it."""

import os
import subprocess
import sys
from pathlib import Path

from distgan.config_loading import load_config
from distgan.data.demo import render_demo_videos
from distgan.data.prepare import prepare

REPOSITORY = Path(__file__).parent.parent

# 16 pixels, 4 frames, two levels, a few thousand parameters: a step takes about 10 ms.
TINY = (
    "data.resolution=16",
    "data.clip_frames=4",
    "data.lanes=4",
    "data.num_workers=0",
    "prepare.stored_frames=6",
    "prepare.clip_format=npy",
    "prepare.shard_megabytes=0.05",
    "prepare.num_processes=1",
    "model.patch=2",
    "model.temporal_levels=1",
    "model.attention.heads=2",
    "model.attention.head_dim=4",
    "model.attention.resolutions=[8]",
    "model.generator.channels=[8,16]",
    "model.generator.latent_dim=8",
    "model.generator.style_dim=16",
    "model.discriminator.channels=[8,16]",
    "train.batch_size=8",
    "train.max_steps=12",
    "train.precision=fp32",
    "train.augment.probability=0.5",
    "train.augment.instance_noise=0.05",
    "loss.penalty_interval=2",
    "log.interval_steps=1",
    "log.proxy_interval_steps=0",
    "log.sample_interval_steps=0",
    "checkpoint.interval_steps=4",
)


def make_tiny_data(folder: Path, *, num_videos: int = 10) -> str:
    """Prepares rendered videos into 4 clips each, in several shards; returns the folder."""
    videos, data = str(folder / "videos"), str(folder / "data")
    render_demo_videos(videos, num_videos=num_videos, seed=0, size=32)
    prepare(videos, data, load_config(overrides=TINY), show_progress=False)
    return data


def launch(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs launch.py to its end and returns its exit code and output."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), *arguments],
        env=one_thread(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def one_thread() -> dict[str, str]:
    """The environment with OpenMP held to one thread: tiny networks run faster so."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
