"""How far the engines are apart from plain PyTorch, step by step.

Each step starts from the same state on both sides: left to themselves, two runs that differ in the
order of sums alone are far apart after twenty steps.
"""

from collections.abc import Sequence
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
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.data.conditioning import condition
from distgan.engine import Engine, PlainEngine
from distgan.timing import PartTimer


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
