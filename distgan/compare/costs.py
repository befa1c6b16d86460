"""What a kind costs on this device, measured in a process of its own: memory, and the token sweep.

The time of a step is not measured here: the runs themselves tell it, over minutes.
"""

import itertools
import math
import statistics
import time
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from distgan.attention import attention_at
from distgan.attention.layers import Place
from distgan.attention_checks import Site, attention_sites
from distgan.blocks import initialise
from distgan.compare.measures import peak_resident_bytes
from distgan.config import Config
from distgan.data.stream import ClipBatch, ClipStream
from distgan.local import build_trainer
from distgan.precision import pick_device
from distgan.seeding import normal_per_clip
from distgan.sparsity import Grid

Facts = dict[str, Any]

MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
_SECONDS_A_POINT = 0.3
_LEAST_REPEATS = 3


def step_memory_gib(config: Config) -> float:
    """What training takes at its peak, beyond what the process had before its networks.

    On a GPU what tensors take there, else the growth of this process's resident memory, so the
    process must be a fresh one.
    """
    device = pick_device(config.train.device)
    stream = ClipStream(
        config.data.shards, config.data, seed=config.seed, batch_size=config.train.batch_size
    )
    before = peak_resident_bytes()
    trainer = build_trainer(config, device, stream, show_progress=False)
    shape = (config.train.batch_size, *stream.clip_shape)
    clips = torch.from_numpy(np.zeros(shape, dtype=np.uint8)).permute(0, 4, 1, 2, 3)
    for _ in range(config.loss.penalty_interval):  # the last one has the penalties
        trainer.train_on(ClipBatch(clips, tuple(range(len(clips)))))
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return (peak_resident_bytes() - before) / 2**30


def sweep_tokens(config: Config) -> list[Facts]:
    """The layers of one attention place, forward and backward on one clip, on growing grids.

    Returns:
        For each grid `tokens`, `time_s` (median; CPU time on CPUs) and `memory_mib` (beyond the
        layers' own weights; on CPUs the growth of resident memory, coarse below a few MiB). Empty
        if there are no layers (kind none without an MLP).
    """
    device = pick_device(config.train.device)
    site = smallest_site(config)
    layers = _build_layers(config, site).to(device)
    if not list(layers.parameters()):
        return []
    bench = _Bench(layers, device, site.width)
    bench.forward_and_backward(site.grid)  # warms up
    points: list[Facts] = []
    before = _peak_bytes(device)
    for scale in itertools.count():
        grid = (site.grid[0], site.grid[1] * 2**scale, site.grid[2] * 2**scale)
        if math.prod(grid) > MOST_TOKENS[device.type] and len(points) >= 2:
            return points
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = bench.median_s(grid)
        memory = (_peak_bytes(device) - before) / 2**20
        points.append({"tokens": math.prod(grid), "time_s": seconds, "memory_mib": memory})
    raise AssertionError("the loop has no end of its own")


def smallest_site(config: Config) -> Site:
    """The place with the fewest tokens that has attention."""
    return min(attention_sites(config), key=lambda site: math.prod(site.grid))


def most_tokens(config: Config) -> int:
    """Of a clip at a place that has attention."""
    return max(math.prod(site.grid) for site in attention_sites(config))


def _build_layers(config: Config, site: Site) -> nn.Sequential:
    with torch.device("meta"):
        built = attention_at(
            site.grid[1], site.width, config.model.attention, cast(Place, site.place)
        )
        layers = nn.Sequential(*built)
    layers.to_empty(device="cpu")
    initialise(layers, 0, "token sweep")
    return layers


class _Bench:
    """Times layers on random feature maps of one clip."""

    def __init__(self, layers: nn.Module, device: torch.device, width: int) -> None:
        self.layers, self.device, self.width = layers, device, width

    def median_s(self, grid: Grid) -> float:
        times: list[float] = []
        while len(times) < _LEAST_REPEATS or (sum(times) < _SECONDS_A_POINT and len(times) < 50):
            start = self._clock_s()
            self.forward_and_backward(grid)
            times.append(self._clock_s() - start)
        return statistics.median(times)

    def forward_and_backward(self, grid: Grid) -> None:
        shape = (*grid, self.width)
        x = normal_per_clip(
            shape, seed=0, purpose="token sweep", step=0, places=[0], device=self.device
        ).requires_grad_()
        self.layers(x).square().mean().backward()

    def _clock_s(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
