"""Adam against SGD on the demo's data: the same networks, clips, draws and number of steps.

    python -m benchmarks optimizers [--steps 300]

Prints the proxy distance of the averaged generator (lower is better), the share of real clips that
D scores above their fake partner, and the loss of G, per optimizer and learning rates.
One run each.
"""

import argparse
import tempfile
from pathlib import Path

from distgan.config_loading import load_config
from distgan.data.demo import render_demo_videos
from distgan.data.prepare import prepare
from distgan.errors import DivergedError
from distgan.local import train_locally
from distgan.metrics.writer import read_metrics

# Kind, learning rate of G and of D, momentum. The first line is the demo's own.
CANDIDATES = (
    ("adam", 1e-3, 4e-4, 0.0),
    ("adam", 2e-4, 2e-4, 0.0),
    ("adamw", 1e-3, 4e-4, 0.0),
    ("sgd", 1e-1, 4e-2, 0.0),
    ("sgd", 1e-2, 4e-3, 0.0),
    ("sgd", 1e-2, 4e-3, 0.9),
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks optimizers", description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args(argv).steps
    print("| optimizer | rate of G | rate of D | momentum | proxy distance | D's sign | G's loss |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        videos, data = str(Path(folder, "videos")), str(Path(folder, "data"))
        render_demo_videos(videos, num_videos=256, seed=0)
        prepare(videos, data, load_config("demo"), show_progress=False)
        for number, (kind, rate_g, rate_d, momentum) in enumerate(CANDIDATES):
            run_dir = str(Path(folder, f"run{number}"))
            overrides = [
                f"run.dir={run_dir}",
                f"data.shards={data}",
                f"train.max_steps={steps}",
                f"log.proxy_interval_steps={steps}",
                f"log.interval_steps={min(50, steps)}",
                "log.sample_interval_steps=0",
            ]
            for network, rate in (("generator", rate_g), ("discriminator", rate_d)):
                overrides += [f"optim.{network}.kind={kind}", f"optim.{network}.lr={rate}"]
                overrides += [f"optim.{network}.momentum={momentum}"]
            row = f"| {kind} | {rate_g:g} | {rate_d:g} | {momentum:g} |"
            try:
                train_locally(load_config("demo", overrides=overrides), show_progress=False)
            except DivergedError as error:
                print(f"{row} diverged: {error} | | |", flush=True)
                continue
            last = read_metrics(str(Path(run_dir, "metrics.jsonl")))[-1]
            print(
                f"{row} {last['quality/proxy_frechet_ema']:.0f} | {last['score/sign']:.2f} "
                f"| {last['loss/generator']:.2f} |",
                flush=True,
            )
