"""Whether the ZeRO engines compute what plain PyTorch computes, measured on small networks.

Most ways to train a GAN under ZeRO are silently wrong, and a new version of DeepSpeed may make
another one so. Each step starts from the same state on both sides: left to themselves, two runs
that differ in the order of sums alone are far apart after twenty steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from cluster.ranks import run_on_ranks
from cluster.stage_checks import check_sharding
from cluster.zero import ZeroEngine
from distgan.adversarial_step import AdversarialStep, Metrics
from distgan.config import AttentionConfig, Config, NetworkOptimConfig, ShardingConfig
from distgan.config_checks import check_config
from distgan.config_loading import with_values
from distgan.data.conditioning import condition
from distgan.engine import Engine, PlainEngine
from distgan.errors import UserError
from distgan.networks import build_discriminator, build_generator
from distgan.timing import PartTimer

MOST_WORKERS = 4
"""More than these would crowd one machine, and show no more."""

MakeEngine = Callable[
    [str, nn.Module, NetworkOptimConfig, ShardingConfig, str, int], Engine
]  # name, module, optim, sharding, precision, accumulation


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest differences of one step (or of several) between two engines, over all ranks."""

    weights: float
    """L2 norm of the weights' difference after the step, relative to that of the step's change."""
    outputs: float
    """Of the updated networks' outputs, relative to the largest of them."""
    losses: float
    """Relative (absolute below 1)."""
    gradient_norms: float
    """Relative."""

    def within(self, tolerance: "Difference") -> bool:
        """False for NaN, too."""
        return all(getattr(self, f.name) <= getattr(tolerance, f.name) for f in fields(self))


TOLERANCES = {
    # More than ten times the largest that `launch.py doctor` found over the presets with 4 workers
    # at stage 3: 8.2e-5, 1.2e-5, 1.3e-7 and 7.7e-7. A wrong engine is off by 1e-2 and more.
    "cpu": Difference(weights=1e-3, outputs=2e-4, losses=2e-6, gradient_norms=1e-5),
    # Not measured yet: GPU kernels add in any order.
    "cuda": Difference(weights=5e-3, outputs=1e-4, losses=1e-4, gradient_norms=1e-3),
}


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What a parity check found."""

    difference: Difference
    tolerance: Difference
    setting: str

    @property
    def passed(self) -> bool:
        return self.difference.within(self.tolerance)

    def __str__(self) -> str:
        verdict = "equal" if self.passed else "NOT EQUAL"
        lines = [f"parity       {verdict} to plain PyTorch: {self.setting}"]
        for field in fields(Difference):
            found, limit = getattr(self.difference, field.name), getattr(self.tolerance, field.name)
            name = field.name.replace("_", " ")
            lines.append(f"             {name} differ by {found:.1e} (limit {limit:.0e})")
        return "\n".join(lines)


def make_zero_engine(
    name: str,
    module: nn.Module,
    optim: NetworkOptimConfig,
    sharding: ShardingConfig,
    precision: str,
    accumulation: int,
) -> Engine:
    return ZeroEngine(name, module, optim, sharding, precision=precision, accumulation=accumulation)


def check_parity(
    config: Config, steps: int = 3, *, make_engine: MakeEngine = make_zero_engine
) -> ParityReport:
    """Takes steps with small copies of the configured networks, in processes of their own.

    On GPUs if there is one for each worker, else over gloo on the CPU; in float32.

    Raises:
        UserError: the configured stages can't work together.
        RuntimeError: an engine failed.
    """
    check_sharding(config)
    world_size = min(config.cluster.num_workers, MOST_WORKERS)
    on_gpus = config.train.device != "cpu" and torch.cuda.device_count() >= world_size
    device_type = "cuda" if on_gpus else "cpu"
    small = small_copy(config, world_size)
    arguments = ([small], steps, device_type, make_engine)
    (per_step,) = run_on_ranks(measure, arguments, world_size=world_size, device_type=device_type)[
        0
    ]
    cluster = config.cluster
    return ParityReport(
        difference=largest(per_step),
        tolerance=TOLERANCES[device_type],
        setting=f"{steps} steps on {world_size} workers ({device_type}), generator at ZeRO-"
        f"{cluster.generator.zero_stage}, discriminator at ZeRO-{cluster.discriminator.zero_stage}",
    )


def require_parity(config: Config) -> ParityReport:
    """`check_parity` before training.

    Raises:
        UserError: the engines differ by more than rounding; no training should start.
    """
    report = check_parity(config)
    if not report.passed:
        raise UserError(
            f"cluster.parity_check: the ZeRO engines do not compute what plain PyTorch does here\n"
            f"{report}\ntake lower cluster.generator.zero_stage and "
            "cluster.discriminator.zero_stage, or the DeepSpeed version of pyproject.toml"
        )
    return report


def small_copy(config: Config, world_size: int) -> Config:
    """The same kinds of blocks, attention, loss, penalty and optimizers, in small."""
    model, data = config.model, config.data
    levels = max(len(model.generator.channels), len(model.discriminator.channels))
    stride = model.patch * 2 ** (levels - 1)
    coarsest = data.resolution // stride
    shrink = coarsest // 2 if coarsest % 2 == 0 and data.resolution // (coarsest // 2) >= 8 else 1
    frames = min(data.clip_frames, 2 * 2**model.temporal_levels)
    steps = {"train.schedule_steps": 1000, "train.max_steps": 1000}
    small = with_values(
        config,
        steps
        | {
            "data.resolution": data.resolution // shrink,
            "data.clip_frames": frames,
            "data.lanes": world_size,
            "data.num_workers": 0,
            "prepare.stored_frames": 0,
            **_small_attention(model.attention, shrink),
            "model.generator.channels": _narrow(model.generator.channels),
            "model.generator.blocks": min(model.generator.blocks, 2),
            "model.generator.latent_dim": 8,
            "model.generator.style_dim": 12,
            "model.discriminator.channels": _narrow(model.discriminator.channels),
            "model.discriminator.blocks": min(model.discriminator.blocks, 2),
            "conditioning.context_frames": min(config.conditioning.context_frames, frames - 1),
            "loss.penalty_interval": min(config.loss.penalty_interval, 2),
            "train.accumulation": min(config.train.accumulation, 2),
            "train.batch_size": 2 * world_size * min(config.train.accumulation, 2),
            "train.precision": "fp32",
        },
    )
    check_config(small)
    return small


def _small_attention(attention: AttentionConfig, shrink: int) -> dict[str, Any]:
    """Options that fit any grid: local kinds see a part of it wherever it has parts."""
    key = "model.attention."
    return {
        f"{key}heads": 2,
        f"{key}head_dim": 4,
        f"{key}resolutions": [r // shrink for r in attention.resolutions],
        f"{key}window": [0, 1, 1],
        f"{key}block": [1, 1, 1],
        f"{key}reach": [0, 0, 0],
        f"{key}density": 0.75,
        f"{key}mlp_width": min(attention.mlp_width, 8),
    }


def _narrow(channels: Sequence[int]) -> list[int]:
    return [min(8 * (level + 1), 16) for level in range(len(channels))]


def largest(differences: Sequence[Difference]) -> Difference:
    """The largest of each; NaN counts as the largest."""
    names = [field.name for field in fields(Difference)]
    table = torch.tensor([[getattr(d, name) for name in names] for d in differences])
    return Difference(**dict(zip(names, table.amax(dim=0).tolist(), strict=True)))


def measure(
    configs: Sequence[Config],
    steps: int,
    device_type: str = "cpu",
    make_engine: MakeEngine = make_zero_engine,
    joined: bool = False,
) -> list[list[Difference]]:
    """On a rank: for each configuration, the differences of each step; the same on all ranks.

    The plain engines take the global batch in the parts that the ranks take, so that kernels round
    alike and what differs is the order of sums; or `joined`, in one part.
    """
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    return [_measure_one(config, steps, device, make_engine, joined) for config in configs]


def _measure_one(
    config: Config, steps: int, device: torch.device, make_engine: MakeEngine, joined: bool
) -> list[Difference]:
    parts = 1 if joined else torch.distributed.get_world_size() * config.train.accumulation
    alone = with_values(config, {"train.accumulation": parts})
    plain = AdversarialStep(alone, *plain_engines(config, device), PartTimer(device))
    for seed, engine in enumerate((plain.generator, plain.discriminator)):
        stir(engine.module, seed)
    zero = AdversarialStep(config, *sharded_engines(config, device, make_engine), PartTimer(device))
    try:
        return [_compare_step(config, plain, zero, step + 1, device) for step in range(steps)]
    finally:
        for sharded in (zero.generator, zero.discriminator):
            if isinstance(sharded, ZeroEngine):
                sharded.close()


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


def _compare_step(
    config: Config, plain: AdversarialStep, zero: AdversarialStep, step: int, device: torch.device
) -> Difference:
    """One step of both from the plain engines' state."""
    pairs = (zero.generator, plain.generator), (zero.discriminator, plain.discriminator)
    state = plain_state(plain)
    for sharded, _ in pairs:
        sharded.load_state_tensors(state)
    before = {name: tensor.clone() for name, tensor in state.items() if ".optimizer/" not in name}
    clips, places = random_clips(config, step, device), own_places(config.train.batch_size)
    ours = zero.run(clips[places.start : places.stop], places, step)
    theirs = plain.run(clips, range(len(clips)), step)
    after = plain_state(plain)
    local = Difference(
        weights=max(_weights_differ(sharded, before, after, device) for sharded, _ in pairs),
        outputs=_outputs_differ(config, zero, plain, step, device),
        losses=_metrics_differ(ours, theirs, "loss/"),
        gradient_norms=_metrics_differ(ours, theirs, "gradient_norm/"),
    )
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, local)
    return largest(everywhere)


def plain_state(plain: AdversarialStep) -> dict[str, Tensor]:
    """Of both networks, by its names in a checkpoint; not copied."""
    assert isinstance(plain.generator, PlainEngine) and isinstance(plain.discriminator, PlainEngine)
    return plain.generator.state_tensors() | plain.discriminator.state_tensors()


def _weights_differ(
    sharded: Engine, before: dict[str, Tensor], after: dict[str, Tensor], device: torch.device
) -> float:
    """The ranks' pieces together against the plain engine's weights."""
    names = sharded.parameter_shapes()
    moved = sum((after[name] - before[name]).double().square().sum().item() for name in names)
    differ = torch.zeros((), dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.int64, device=device)
    for fragment in sharded.state_fragments():
        if fragment.name in names:
            end = fragment.start + fragment.values.numel()
            piece = after[fragment.name].reshape(-1)[fragment.start : end].cpu()
            differ += (fragment.values - piece).double().square().sum()
            count += fragment.values.numel()
    torch.distributed.all_reduce(differ)
    torch.distributed.all_reduce(count)
    assert count == sum(after[name].numel() for name in names), "each weight is written once"
    return float((differ / moved).sqrt())


@torch.no_grad()
def _outputs_differ(
    config: Config, zero: AdversarialStep, plain: AdversarialStep, step: int, device: torch.device
) -> float:
    """Of the updated networks, which every rank reads whole."""
    latent_dim = config.model.generator.latent_dim
    latent_BZ = torch.randn(2, latent_dim, generator=torch.Generator().manual_seed(step)).to(device)
    clips = random_clips(config, step, device)[:2].float() / 127.5 - 1
    worst = 0.0
    given, known = condition(clips, config.conditioning)
    inputs: tuple[Tensor | None, ...]
    for sharded, whole, inputs in (
        (zero.generator, plain.generator, (latent_BZ, given, known)),
        (zero.discriminator, plain.discriminator, (clips,)),
    ):
        expected = whole.bare(*inputs, full_precision=True)
        found = sharded.bare(*inputs, full_precision=True)
        worst = _larger(worst, ((found - expected).abs().max() / expected.abs().max()).item())
    return worst


def _metrics_differ(ours: Metrics, theirs: Metrics, prefix: str) -> float:
    """Losses are means over a rank's clips; norms are global already."""
    worst, size = 0.0, torch.distributed.get_world_size()
    for name in (name for name in sorted(theirs) if name.startswith(prefix)):
        mean = ours[name].detach().double().clone()
        torch.distributed.all_reduce(mean)
        expected = theirs[name].item()
        worst = _larger(worst, abs(mean.item() / size - expected) / max(abs(expected), 1.0))
    return worst


def _larger(a: float, b: float) -> float:
    """Like max, but NaN wins."""
    return b if not b <= a else a
