"""From the command to the end of the first step, beside an empty Ray Train function.

Three commands take turns: `train` on two workers; `train` in local mode, which is the model's own
time (the same networks, data and first step without Ray); and a program that starts Ray with its
defaults and an empty training function on two workers, until that function starts.
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
from distgan.config_loading import load_config
from distgan.data.demo import render_demo_videos
from distgan.data.prepare import prepare

WORKERS = 2
_POLL_S = 0.02
_LIMIT_S = 300.0


def main(argv: list[str]) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks start_up", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parsed = parser.parse_args(argv)
    keys = ["train.precision=fp32", "train.device=cpu", "data.num_workers=0", *parsed.overrides]
    seconds: dict[str, list[float]] = {"empty": [], "local": [], "cluster": []}
    with TemporaryDirectory() as folder:
        data = _make_data(parsed.preset, keys, folder)
        train = ["launch.py", "train", "--preset", parsed.preset, *keys, f"data.shards={data}",
                 "train.max_steps=1", "log.interval_steps=1"]  # fmt: skip
        for number in range(parsed.rounds):
            for name in seconds if number % 2 == 0 else reversed(list(seconds)):
                own = str(Path(folder, f"{name}-{number}"))
                command, sign = {
                    "empty": (["-m", "benchmarks._empty_train", own, str(WORKERS)], own),
                    "local": ([*train, f"run.dir={own}"], f"{own}/metrics.jsonl"),
                    "cluster": (
                        [*train, f"run.dir={own}", f"cluster.num_workers={WORKERS}"],
                        f"{own}/metrics.jsonl",
                    ),
                }[name]
                seconds[name].append(_seconds_until(command, Path(sign)))
    rounds = list(zip(*seconds.values(), strict=True))
    beyond = statistics.median((cluster - own) / empty for empty, own, cluster in rounds)
    whole = statistics.median(cluster / empty for empty, _, cluster in rounds)
    print(f"{parsed.preset}, {WORKERS} workers, {parsed.rounds} rounds; median (quartiles)\n")
    print("| from the command to | seconds |\n|---|---|")
    print(f"| the start of an empty Ray Train function | {spread(seconds['empty'])} |")
    print(f"| the end of the first step, local mode | {spread(seconds['local'])} |")
    print(f"| the end of the first step, Ray and ZeRO | {spread(seconds['cluster'])} |")
    print(f"| the last, over the empty function's | {whole:.3f} |")
    print(f"| the last less local mode's, over the empty function's | {beyond:.3f} |")


def _make_data(preset: str, keys: list[str], folder: str) -> str:
    videos, data = f"{folder}/videos", f"{folder}/data"
    render_demo_videos(videos, num_videos=32, seed=0)
    prepare(videos, data, load_config(preset, overrides=keys), show_progress=False)
    return data


def _seconds_until(command: list[str], sign: Path) -> float:
    """Until the file `sign` is there and not all empty where it is a log; the command then ends."""
    start = time.perf_counter()
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, *command], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not (sign.exists() and (sign.stat().st_size or not sign.suffix)):
            assert time.perf_counter() - start < _LIMIT_S, f"{command} made no step"
            if process.poll() not in (None, 0):
                raise RuntimeError(f"{command} failed:\n{process.communicate()[1]}")
            time.sleep(_POLL_S)
        seconds = time.perf_counter() - start
        error = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{error}")
    return seconds
