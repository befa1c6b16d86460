"""A G+D step under ZeRO-0 to 3 beside DistributedDataParallel, on two processes over gloo.

All variants live in the same two processes and take turns; each round steps each once. Also counts
the bytes that each rank holds between steps, beside the papers' formula for Adam in float32: 4
bytes a parameter for weights and 8 for the optimizer, of which ZeRO splits the optimizer's (stages
1 and 2) and the weights' (3) over the ranks; float32 masters of a rank's part, 4 / ranks, come on
top of stages 1 to 3. Gradients, 4 bytes, are freed between steps, but for a rank's part at stage 3.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks._pairs import spread
from cluster.engine_pairs import own_places, random_clips, sharded_engines
from cluster.ranks import run_on_ranks
from distgan.adversarial_step import AdversarialStep
from distgan.config import Config, NetworkOptimConfig
from distgan.config_loading import load_config
from distgan.engine import Engine, PlainEngine
from distgan.networks import build_discriminator, build_generator
from distgan.timing import PartTimer

RANKS = 2
STAGES = (0, 1, 2, 3)
DDP = "DDP"


class DdpEngine(PlainEngine):
    """A plain engine whose forward is DistributedDataParallel's."""

    def __init__(
        self, name: str, module: nn.Module, config: NetworkOptimConfig, precision: str
    ) -> None:
        super().__init__(name, module, config, precision)
        self.parallel = DistributedDataParallel(module)

    def __call__(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        enabled = self.autocast and not full_precision
        with torch.autocast(self.device_type, torch.bfloat16, enabled=enabled):
            output: Tensor = self.parallel(*inputs)
        return output


def ddp_engines(
    config: Config, device: torch.device, *, contiguous: bool = False
) -> tuple[Engine, Engine]:
    """The generator's and the discriminator's, laid out as plain engines or as ZeRO does it."""
    optim, precision = config.optim, config.train.precision
    networks = (build_generator(config, device), build_discriminator(config, device))
    if contiguous:
        for network in networks:
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    generator, discriminator = networks
    return (
        DdpEngine("generator", generator, optim.generator, precision),
        DdpEngine("discriminator", discriminator, optim.discriminator, precision),
    )


def main(argv: list[str]) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks zero", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--preset", default="small-64")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parsed = parser.parse_args(argv)
    overrides = ["train.batch_size=16", "train.precision=fp32", "train.device=cpu",
                 "loss.penalty_interval=1", *parsed.overrides]  # fmt: skip
    config = load_config(parsed.preset, overrides=overrides)
    ranks = run_on_ranks(_measure, (config, parsed.rounds), world_size=RANKS, timeout_s=3600)
    found = ranks[0]
    # A rank that waits takes no CPU time: what both take in all is free of other programs.
    cpu = {
        n: [sum(both) for both in zip(*(r.cpu_s[n] for r in ranks), strict=True)]
        for n in found.wall_s
    }
    step_s = statistics.median(found.wall_s[DDP])
    print(f"{RANKS} processes, {parsed.preset}, {found.parameters:,} parameters; a step of DDP "
          f"takes {step_s:.2f} s (median of {parsed.rounds}); time of a step over DDP's, round by "
          "round: median (quartiles)\n")  # fmt: skip
    print(
        "| engine | step over DDP's | CPU time over DDP's | model state a rank, MB | formula, MB |"
    )
    print("|---|---|---|---|---|")
    for name in found.wall_s:
        wall_ratio, cpu_ratio = (_over_ddp(times, name) for times in (found.wall_s, cpu))
        held_mb = found.held[name] / 1e6
        theory_mb = _theory(name, found.parameters)
        print(f"| {name} | {wall_ratio} | {cpu_ratio} | {held_mb:.1f} | {theory_mb:.1f} |")


def _over_ddp(times: dict[str, list[float]], name: str) -> str:
    if name == DDP:
        return "1"
    return spread([own / ddp for own, ddp in zip(times[name], times[DDP], strict=True)])


def _theory(name: str, parameters: int) -> float:
    """MB a rank."""
    if name == DDP:
        return 12 * parameters / 1e6
    share = parameters / RANKS / 1e6
    whole = parameters / 1e6
    return {0: 12 * whole, 1: 4 * whole + 12 * share, 2: 4 * whole + 12 * share, 3: 20 * share}[
        int(name[-1])
    ]


class Measured(NamedTuple):
    """On one rank, by engine."""

    wall_s: dict[str, list[float]]
    """Of each step, from barrier to barrier."""
    cpu_s: dict[str, list[float]]
    """Of each step, of this process."""
    held: dict[str, int]
    """Bytes that it keeps between steps."""
    parameters: int
    """Of both networks."""


def _measure(config: Config, rounds: int) -> Measured:
    device = torch.device("cpu")
    clips, places = random_clips(config, 0, device), own_places(config.train.batch_size)
    own = clips[places.start : places.stop]
    steps: dict[str, AdversarialStep] = {}
    held: dict[str, int] = {}
    for name, make in _makers(config, device).items():
        before = _live_bytes()
        generator, discriminator = make()
        steps[name] = AdversarialStep(config, generator, discriminator, PartTimer(device))
        steps[name].run(own, places, 1)
        held[name] = _live_bytes() - before
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in steps if number % 2 == 0 else reversed(list(steps)):
            torch.distributed.barrier()
            start, cpu_start = time.perf_counter(), time.process_time()
            steps[name].run(own, places, number + 2)
            torch.distributed.barrier()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    networks = (build_generator(config, device), build_discriminator(config, device))
    parameters = sum(p.numel() for network in networks for p in network.parameters())
    return Measured(wall, cpu, held, parameters)


def _makers(config: Config, device: torch.device) -> dict[str, Callable[[], tuple[Engine, Engine]]]:
    def zero(stage: int) -> Callable[[], tuple[Engine, Engine]]:
        sharding = {"zero_stage": stage}
        tree = config.model_dump()
        tree["cluster"] |= {"generator": sharding, "discriminator": sharding}
        return lambda: sharded_engines(Config.model_validate(tree), device)

    ddp = {DDP: lambda: ddp_engines(config, device)}
    return ddp | {f"ZeRO-{stage}": zero(stage) for stage in STAGES}


def _live_bytes() -> int:
    """Of all tensors in this process, each storage once."""
    gc.collect()
    storages: dict[int, int] = {}
    for candidate in gc.get_objects():
        if issubclass(type(candidate), Tensor) and candidate.device.type == "cpu":
            for tensor in (candidate, candidate.grad if candidate.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
