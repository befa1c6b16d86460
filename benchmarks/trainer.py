"""What the trainer costs: its full G+D step against a bare hand-written loop of the same networks.

    python -m benchmarks trainer [--pairs 12] [--steps 8] [KEY=VALUE ...]

Both run in this process, interleaved; the ratio is of process CPU time on a CPU (a shared machine
spoils wall time) and of wall time on a GPU. The trainer's part includes reading the data, moving
averages, stop rules and logging every 10 steps; the bare loop has its clips in memory, and
includes the moving average too. Also prints the share of the step that waits for data.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distgan.augmentation import augment_drawn
from distgan.config import Config
from distgan.config_loading import load_config, with_values
from distgan.data.demo import render_demo_videos
from distgan.data.prepare import prepare
from distgan.data.stream import ClipStream
from distgan.local import build_trainer
from distgan.metrics.writer import MetricsWriter
from distgan.networks import build_discriminator, build_generator
from distgan.observer import Observer
from distgan.precision import pick_device, pick_precision


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks trainer", description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8, help="steps a measurement")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(folder, arguments.preset, arguments.overrides)
        device = pick_device("auto")
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        ours, waits = _trainer_steps(config, device)
        bare = _bare_steps(config, device)
        ratios = []
        for run in (ours, bare):
            run(2 * config.loss.penalty_interval)
        waits.clear()
        for pair in range(arguments.pairs):
            order = (ours, bare) if pair % 2 == 0 else (bare, ours)
            seconds = {run: _time(run, arguments.steps, clock) for run in order}
            ratios.append(seconds[ours] / seconds[bare])
        print(f"step of the bare loop: {seconds[bare] / arguments.steps:.4f} s of {clock.__name__}")
        quartiles = statistics.quantiles(ratios, n=4)
        print(
            f"ratio: {statistics.median(ratios):.3f} (quartiles {quartiles[0]:.3f} to "
            f"{quartiles[2]:.3f}, range {min(ratios):.3f} to {max(ratios):.3f}, "
            f"{len(ratios)} pairs of {arguments.steps} steps)"
        )
        total = sum(wait for wait, _ in waits) / sum(step for _, step in waits)
        print(f"share of the step that waits for data: {total:.4f}")


def _config(folder: str, preset: str, overrides: list[str]) -> Config:
    """The preset on the demo's videos, at the preset's size."""
    config = load_config(preset, overrides=overrides)
    config = with_values(
        config,
        {
            "train.precision": pick_precision(config.train.precision, pick_device("auto")),
            "train.schedule_steps": 1000,
            "log.proxy_interval_steps": 0,
            "log.sample_interval_steps": 0,
            "run.dir": str(Path(folder, "run")),
            "data.shards": str(Path(folder, "data")),
        },
    )
    videos = str(Path(folder, "videos"))
    render_demo_videos(videos, num_videos=32, seed=0, size=2 * config.data.resolution)
    prepare(videos, config.data.shards, config, show_progress=False)
    return config


def _trainer_steps(
    config: Config, device: torch.device
) -> tuple[Callable[[int], None], list[tuple[float, float]]]:
    """A function that runs so many steps of the trainer, and (wait, step) seconds of each."""
    stream = ClipStream(
        config.data.shards, config.data, seed=config.seed, batch_size=config.train.batch_size
    )
    trainer = build_trainer(config, device, stream, show_progress=False)
    writer = MetricsWriter(config.run.dir)
    observer = Observer(config, stream, trainer.average, writer, trainer.team, device)
    batches = stream.batches()
    waits: list[tuple[float, float]] = []

    def run(steps: int) -> None:
        for _ in range(steps):
            start = time.perf_counter()
            batch = trainer.next_batch(batches)
            got = time.perf_counter()
            trainer.note(trainer.train_on(batch), observer)
            waits.append((got - start, time.perf_counter() - start))

    return run, waits


def _bare_steps(config: Config, device: torch.device) -> Callable[[int], None]:
    """The same objective in plain PyTorch: what one would write by hand for this configuration."""
    generator, average = (build_generator(config, device) for _ in range(2))
    discriminator = build_discriminator(config, device)
    optims = config.optim.generator, config.optim.discriminator
    adam_g, adam_d = (
        torch.optim.Adam(net.parameters(), lr=o.lr, betas=(o.beta1, o.beta2), fused=True)
        for net, o in zip((generator, discriminator), optims, strict=True)
    )
    shape = (3, config.data.clip_frames, config.data.resolution, config.data.resolution)
    batch, loss, noise = config.train.batch_size, config.loss, config.train.augment.instance_noise
    real_uint8 = torch.randint(0, 256, (batch, *shape[1:], shape[0]), dtype=torch.uint8)
    real_uint8 = real_uint8.permute(0, 4, 1, 2, 3).to(device)
    autocast = config.train.precision == "bf16"
    taken = 0

    def call(net: torch.nn.Module, x: Tensor, full: bool = False) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast and not full):
            output: Tensor = net(x)
        return output

    def normal() -> Tensor:  # drawn contiguous: randn_like follows strides, at half the speed
        return torch.randn((batch, *shape), device=device)

    def seen(video: Tensor) -> Tensor:
        if config.train.augment.probability:
            video = augment_drawn(video, config.train.augment, torch.rand(batch, 8, device=device))
        return video + noise * normal() if noise else video

    def latent() -> Tensor:
        return torch.randn(batch, config.model.generator.latent_dim, device=device)

    def step() -> None:
        real = real_uint8.float() / 127.5 - 1
        with torch.no_grad():
            fake = seen(call(generator, latent()))
        real_seen = seen(real)
        if taken % loss.penalty_interval == 0:
            s = loss.penalty_step
            moved = [v + s * normal() for v in (real_seen, fake)]
            r, f, mr, mf = call(
                discriminator, torch.cat((real_seen, fake, *moved)), full=True
            ).chunk(4)
            penalty = (((r - mr) / s).square() + ((f - mf) / s).square()).mean()
            d_loss = F.softplus(f - r).mean() + loss.gamma / 2 * loss.penalty_interval * penalty
        else:
            r, f = call(discriminator, torch.cat((real_seen, fake))).chunk(2)
            d_loss = F.softplus(f - r).mean()
        d_loss.backward()
        adam_d.step()
        adam_d.zero_grad()
        discriminator.requires_grad_(False)
        f = call(discriminator, seen(call(generator, latent())))
        with torch.no_grad():
            r = call(discriminator, seen(real))
        F.softplus(r - f).mean().backward()
        discriminator.requires_grad_(True)
        adam_g.step()
        adam_g.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 0.01)

    def run(steps: int) -> None:
        nonlocal taken
        for _ in range(steps):
            taken += 1
            step()

    return run


def _time(run: Callable[[int], None], steps: int, clock: Callable[[], float]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    run(steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start
