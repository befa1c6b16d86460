"""Two engines of each kind, and the batches that comparisons feed them.

For the parity check, the tests and the benchmarks: the trainer builds its own.
"""

from collections.abc import Callable

import torch
import torch.distributed
from torch import Tensor, nn

from cluster.zero import ZeroEngine
from distgan.config import Config, NetworkOptimConfig, ShardingConfig
from distgan.engine import Engine, PlainEngine
from distgan.networks import build_discriminator, build_generator

MakeEngine = Callable[
    [str, nn.Module, NetworkOptimConfig, ShardingConfig, str, int], Engine
]  # name, module, optim, sharding, precision, accumulation


def make_zero_engine(
    name: str,
    module: nn.Module,
    optim: NetworkOptimConfig,
    sharding: ShardingConfig,
    precision: str,
    accumulation: int,
) -> Engine:
    return ZeroEngine(name, module, optim, sharding, precision=precision, accumulation=accumulation)


def plain_engines(config: Config, device: torch.device) -> tuple[PlainEngine, PlainEngine]:
    """The generator's and the discriminator's, at their start weights."""
    optim, precision = config.optim, config.train.precision
    generator, discriminator = build_generator(config, device), build_discriminator(config, device)
    return (
        PlainEngine("generator", generator, optim.generator, precision),
        PlainEngine("discriminator", discriminator, optim.discriminator, precision),
    )


def sharded_engines(
    config: Config, device: torch.device, make_engine: MakeEngine = make_zero_engine
) -> tuple[Engine, Engine]:
    """The same two under the configured stages."""
    optim, cluster, train = config.optim, config.cluster, config.train
    generator, discriminator = build_generator(config, device), build_discriminator(config, device)
    return (
        make_engine("generator", generator, optim.generator, cluster.generator,
                    train.precision, train.accumulation),
        make_engine("discriminator", discriminator, optim.discriminator, cluster.discriminator,
                    train.precision, train.accumulation),
    )  # fmt: skip


def stir(module: nn.Module, seed: int, deviation: float = 0.05) -> None:
    """Moves every parameter off its start value, so that no branch is switched off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.device), alpha=deviation)


def random_clips(config: Config, step: int, device: torch.device) -> Tensor:
    """A global batch of uint8 noise (B, 3, T, H, W), the same on all ranks."""
    size, frames = config.data.resolution, config.data.clip_frames
    shape = (config.train.batch_size, 3, frames, size, size)
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)


def own_places(batch_size: int) -> range:
    """This rank's places in the global batch."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return range(rank * batch_size // size, (rank + 1) * batch_size // size)
