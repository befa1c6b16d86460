"""What a trial of `launch.py tune` costs beside the same `launch.py train`, start-up left out.

Both train the demo's model on the same data with one thread; the training time is the one that
each run's last checkpoint holds: steps, evaluations, checkpoints, and for a trial the waits for
Ray Tune at each evaluation. Turn by turn: a plain run, then a sweep of two trials, one after the
other. Also shown: the whole command, per trial, with all that starts and ends it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks._pairs import spread
from distgan.checkpoint import load_newest
from distgan.config_loading import load_config
from distgan.data.demo import render_demo_videos
from distgan.data.prepare import prepare

ROOT = Path(__file__).parent.parent


def main(argv: list[str]) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tune", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=4)
    parsed = parser.parse_args(argv)
    interval = parsed.steps // parsed.evaluations
    ratios, commands, plain_s = [], [], []
    with TemporaryDirectory() as folder:
        data = _prepare(Path(folder))
        keys = [
            f"data.shards={data}", f"train.max_steps={parsed.steps}", "train.precision=fp32",
            f"log.proxy_interval_steps={interval}", "log.sample_interval_steps=0",
        ]  # fmt: skip
        space = Path(folder, "space.yaml")
        space.write_text("loss.gamma: {choice: [10.0, 10.5]}\n")
        for number in range(parsed.rounds):
            plain, sweep = Path(folder, f"plain-{number}"), Path(folder, f"sweep-{number}")
            _launch("train", "--preset", "demo", *keys, f"run.dir={plain}")
            started = time.monotonic()
            options = ["--num-trials", "1", "--max-concurrent", "1", "--space", str(space)]
            _launch("tune", *options, "--preset", "demo", *keys, f"run.dir={sweep}")
            commands.append((time.monotonic() - started) / 2)
            plain_s.append(_seconds(plain))
            ratios += [_seconds(trial) / plain_s[-1] for trial in (sweep / "trials").iterdir()]
    print(f"demo, {parsed.steps} steps, {parsed.evaluations} evaluations, one thread; a plain run "
          f"trains for {statistics.median(plain_s):.1f} s; {parsed.rounds} rounds; median "
          "(quartiles)\n")  # fmt: skip
    print("| what | value |\n|---|---|")
    print(f"| training time, trial over plain run | {spread(ratios)} |")
    print(f"| whole sweep of two trials, seconds per trial | {spread(commands)} |")


def _prepare(folder: Path) -> str:
    videos, data = str(folder / "videos"), str(folder / "data")
    render_demo_videos(videos, num_videos=64, seed=0)
    prepare(videos, data, load_config("demo"), show_progress=False)
    return data


def _launch(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )


def _seconds(run: Path) -> float:
    checkpoint, _ = load_newest(str(run))
    assert checkpoint is not None
    return float(checkpoint.state["seconds"])
