"""How far the engines are apart from plain PyTorch, step by step.

Each step starts from the same state on both sides: left to themselves, two runs that differ in the
order of sums alone are far apart after twenty steps.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from cluster.engine_pairs import (
    MakeEngine,
    make_zero_engine,
    own_places,
    plain_engines,
    random_clips,
    sharded_engines,
    stir,
)
from cluster.zero import ZeroEngine
from distgan.adversarial_step import AdversarialStep, Metrics
from distgan.config import Config, NetworkOptimConfig
from distgan.config_loading import with_values
from distgan.data.conditioning import condition
from distgan.engine import Engine, PlainEngine
from distgan.timing import PartTimer


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest differences of one step (or of several) between two engines, over all ranks."""

    weights: float
    """L2 norm of the weights' difference after the step, relative to that of the step's change."""
    gradients: float
    """L2 norm of the difference of the gradients that the step took, relative to the gradient's."""
    outputs: float
    """Of the updated networks' outputs, relative to the largest of them."""
    losses: float
    """Relative (absolute below 1)."""
    penalties: float
    """Likewise. Those by finite differences divide the scores' rounding by the difference's step:
    where sums have another order, two runs of plain PyTorch differ as much."""
    gradient_norms: float
    """Relative."""

    def within(self, tolerance: "Difference") -> bool:
        """False for NaN, too."""
        return all(getattr(self, f.name) <= getattr(tolerance, f.name) for f in fields(self))


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

    The plain engines take the global batch in the parts that the ranks take, and hold their
    weights in the memory layout of ZeRO, so that kernels round alike and what differs is the order
    of sums; or `joined`, in one part. On GPUs without TF32, which rounds float32 to 11 bits.
    """
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        return [_measure_one(config, steps, device, make_engine, joined) for config in configs]


def _measure_one(
    config: Config, steps: int, device: torch.device, make_engine: MakeEngine, joined: bool
) -> list[Difference]:
    parts = 1 if joined else torch.distributed.get_world_size() * config.train.accumulation
    alone = with_values(config, {"train.accumulation": parts})
    plain = AdversarialStep(alone, *plain_engines(config, device), PartTimer(device))
    for seed, engine in enumerate((plain.generator, plain.discriminator)):
        engine.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        stir(engine.module, seed)
    zero = AdversarialStep(config, *sharded_engines(config, device, make_engine), PartTimer(device))
    try:
        return [_compare_step(config, plain, zero, step + 1, device) for step in range(steps)]
    finally:
        for sharded in (zero.generator, zero.discriminator):
            if isinstance(sharded, ZeroEngine):
                sharded.close()


def _compare_step(
    config: Config, plain: AdversarialStep, zero: AdversarialStep, step: int, device: torch.device
) -> Difference:
    """One step of both from the plain engines' state."""
    pairs = (zero.generator, plain.generator), (zero.discriminator, plain.discriminator)
    state = plain_state(plain)
    for sharded, _ in pairs:
        sharded.load_state_tensors(state)
    before = {name: tensor.clone() for name, tensor in state.items()}
    clips, places = random_clips(config, step, device), own_places(config.train.batch_size)
    ours = zero.run(clips[places.start : places.stop], places, step)
    theirs = plain.run(clips, range(len(clips)), step)
    after = plain_state(plain)
    local = Difference(
        weights=_largest_of(_weights_differ(e, before, after, device) for e, _ in pairs),
        gradients=_largest_of(
            _gradients_differ(e, getattr(config.optim, e.name), before, after, device)
            for e, _ in pairs
        ),
        outputs=_outputs_differ(config, zero, plain, step, device),
        losses=_metrics_differ(ours, theirs, ("loss/",)),
        penalties=_metrics_differ(ours, theirs, ("penalty/",)),
        gradient_norms=_metrics_differ(ours, theirs, ("gradient_norm/",)),
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
    names = sharded.parameter_shapes()
    moved = [after[name] - before[name] for name in names]
    return float(_distance(sharded, {name: after[name] for name in names}, device) / _norm(moved))


def _gradients_differ(
    sharded: Engine,
    optim: NetworkOptimConfig,
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    device: torch.device,
) -> float:
    """As the optimizer was given them (clipped), read from what the step made of its state.

    A moment m becomes `decay * m + share * (gradient + weight_decay * weight)`, and both sides had
    the same m and weights before. Plain SGD has no state: there, of the weights themselves.
    """
    names = list(sharded.parameter_shapes())
    key, decay, share = "momentum_buffer", optim.momentum, 1.0
    if optim.kind != "sgd":
        key, decay, share = "exp_avg", optim.beta1, 1 - optim.beta1
    elif not optim.momentum:
        key, decay, share = "", 1.0, -_rate_of(sharded)
    moments = {name: _moment_name(name, key) if key else name for name in names}
    added = 0.0 if optim.kind == "adamw" else optim.weight_decay
    gradients = [
        (after[m].double() - decay * before.get(m, torch.zeros_like(after[m])).double()) / share
        - added * before[name].double()
        for name, m in moments.items()
    ]
    differ = _distance(sharded, {m: after[m] for m in moments.values()}, device) / abs(share)
    return float(differ / _norm(gradients))


def _moment_name(name: str, key: str) -> str:
    network, parameter = name.split("/", 1)
    return f"{network}.optimizer/{parameter}/{key}"


def _rate_of(engine: Engine) -> float:
    """Of the step that it took last."""
    return float(engine.optimizer.param_groups[0]["lr"])


def _distance(sharded: Engine, whole: dict[str, Tensor], device: torch.device) -> Tensor:
    """L2, of what the ranks' pieces make together from these tensors."""
    square = torch.zeros((), dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.int64, device=device)
    for fragment in sharded.state_fragments():
        if fragment.name in whole:
            end = fragment.start + fragment.values.numel()
            piece = whole[fragment.name].reshape(-1)[fragment.start : end].cpu()
            square += (fragment.values - piece).double().square().sum().to(device)
            count += fragment.values.numel()
    torch.distributed.all_reduce(square)
    torch.distributed.all_reduce(count)
    assert count == sum(tensor.numel() for tensor in whole.values()), "each is written once"
    return square.sqrt().cpu()


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.double().square().sum().cpu() for tensor in tensors]).sum().sqrt()


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


def _metrics_differ(ours: Metrics, theirs: Metrics, prefixes: tuple[str, ...]) -> float:
    """Losses are means over a rank's clips; norms are global already."""
    worst, size = 0.0, torch.distributed.get_world_size()
    for name in (name for name in sorted(theirs) if name.startswith(prefixes)):
        mean = ours[name].detach().double().clone()
        torch.distributed.all_reduce(mean)
        expected = theirs[name].item()
        worst = _larger(worst, abs(mean.item() / size - expected) / max(abs(expected), 1.0))
    return worst


def _largest_of(values: Iterable[float]) -> float:
    return functools.reduce(_larger, values)


def _larger(a: float, b: float) -> float:
    """Like max, but NaN wins."""
    return b if not b <= a else a
