"""What the ZeRO engines refuse, what they leave untouched, and the traps they go around."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

from cluster.engine_difference import Difference, largest, measure
from cluster.engine_pairs import own_places, plain_engines, random_clips, sharded_engines, stir
from cluster.parity import ParityError, check_parity
from cluster.ranks import run_on_ranks
from cluster.sharded_average import ShardedAverage
from cluster.stage_checks import check_sharding
from cluster.zero import ZeroEngine
from cluster.zero_settings import deepspeed_settings
from cluster.zero_shards import make_shards, slice_bounds
from distgan.adversarial_step import AdversarialStep
from distgan.config import Config, NetworkOptimConfig, ShardingConfig
from distgan.config_loading import with_values
from distgan.ema import PlainAverage
from distgan.engine import Engine
from distgan.errors import DivergedError, UserError
from distgan.networks import build_generator
from distgan.timing import PartTimer
from tests.test_zero_state import put_together
from tests.tiny_networks import CPU, tiny_config

# (stage, accumulation, offloaded)
REFUSALS = [(0, 1, False), (1, 2, False), (2, 2, False), (3, 2, False),
            (1, 2, True), (2, 1, True), (3, 2, True)]  # fmt: skip
STAGES = (0, 1, 2, 3)
NETWORKS = ("generator", "discriminator")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"kind": "adam", "beta1": 0.5, "weight_decay": 0.5},
    "adamw": {"kind": "adamw", "weight_decay": 0.5},
    "momentum": {"kind": "sgd", "momentum": 0.9, "lr": 1e-2, "weight_decay": 0.5},
    "sgd": {"kind": "sgd", "lr": 1e-2, "weight_decay": 0.5},
}


def config_of(stage: int, accumulation: int = 1, offloaded: bool = False) -> Config:
    values: dict[str, Any] = {"train.accumulation": accumulation}
    for name in NETWORKS:
        values[f"cluster.{name}.zero_stage"] = stage
        values[f"cluster.{name}.offload_optimizer"] = offloaded
    return tiny_config(values)


@dataclass(frozen=True)
class Refusal:
    """What a loss that is NaN on rank 1 alone led to."""

    raised: bool
    untouched: bool
    as_if_never: bool
    """Whether the next step equals, in every bit, that of an engine that never saw the NaN."""


@dataclass(frozen=True)
class Averaged:
    differs_by: float
    restored: bool
    written_once: bool
    left_whole: int
    """Bytes of its whole weights on this rank outside of sampling."""


@dataclass(frozen=True)
class Found:
    """What one rank saw."""

    refusals: list[Refusal]
    averages: list[Averaged]
    fresh: list[list[str]]
    """By stage, what differs in any bit from the plain training before the first step."""
    gathered: list[str]
    """Parameters that a step at stage 3 left whole on this rank."""
    larger: list[Difference]
    """Of engines whose gradients are a hundredth too large, by optimizer."""


@pytest.fixture(scope="module")
def found() -> list[Found]:
    return run_on_ranks(look, (), world_size=2)


def look() -> Found:
    """On a rank."""
    return Found(
        [refuse(config_of(*case)) for case in REFUSALS],
        [follow(config_of(stage)) for stage in STAGES],
        [differs_at_first(config_of(stage)) for stage in STAGES],
        left_whole(config_of(3)),
        [largest(steps) for steps in measure(larger_configs(), 2, make_engine=larger)],
    )


def differs_at_first(config: Config) -> list[str]:
    """Of what each rank updates, of the average, and of what the forward reads."""
    generator, discriminator = sharded_engines(config, CPU)
    assert isinstance(generator, ZeroEngine) and isinstance(discriminator, ZeroEngine)
    average = ShardedAverage(build_generator(config, CPU), generator)
    parts = (generator, discriminator, average)
    found = whole([fragment for part in parts for fragment in part.state_fragments()])
    plain = plain_engines(config, CPU)
    own = PlainAverage(build_generator(config, CPU), plain[0].module)
    fragments = [fragment for part in (*plain, own) for fragment in part.state_fragments()]
    expected = put_together(fragments)
    differ = [n for n in expected if n not in found or not torch.equal(found[n], expected[n])]
    for engine in (generator, discriminator):
        for name, shape in engine.whole_shapes().items():
            bounds = slice_bounds(torch.Size(shape).numel(), engine.rank, engine.world_size)
            slice_of_it = expected[f"{engine.name}/{name}"].reshape(-1)[slice(*bounds)]
            if not torch.equal(engine.shards.slice_of_weight(name), slice_of_it):
                differ.append(f"{engine.name}/{name}, which the forward reads")
    return differ + sorted(found.keys() - expected.keys())


def left_whole(config: Config) -> list[str]:
    adversarial = AdversarialStep(config, *sharded_engines(config, CPU), PartTimer(CPU))
    places = own_places(config.train.batch_size)
    for step in (1, 2):
        adversarial.run(random_clips(config, step, CPU)[places.start : places.stop], places, step)
    parameters: list[tuple[str, Any]] = [
        (f"{engine.name}/{name}", parameter)
        for engine in (adversarial.generator, adversarial.discriminator)
        for name, parameter in engine.module.named_parameters()
    ]
    return [n for n, p in parameters if p.ds_status.name == "AVAILABLE" and not p.ds_persist]


def generator_engine(config: Config) -> ZeroEngine:
    engine = sharded_engines(config, CPU)[0]
    assert isinstance(engine, ZeroEngine)
    module = build_generator(config, CPU)
    stir(module, 0)
    engine.load_state_tensors({f"generator/{n}": p for n, p in module.named_parameters()})
    return engine


def take_step(engine: ZeroEngine, number: int, poison: float = 1.0) -> Tensor:
    """Rank 1's last loss is multiplied by `poison`."""
    rank = torch.distributed.get_rank()
    for part in range(engine.accumulation):
        draws = torch.Generator().manual_seed(1000 * number + 10 * part + rank)
        last = part == engine.accumulation - 1 and rank == 1
        loss = engine(torch.randn(2, 8, generator=draws), None, None).square().mean()
        engine.backward(loss * (poison if last else 1.0))
    return engine.step(1e-3)


def own_state(engine: ZeroEngine) -> dict[str, Tensor]:
    return {fragment.name: fragment.values for fragment in engine.state_fragments()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refuse(config: Config) -> Refusal:
    calm, disturbed = generator_engine(config), generator_engine(config)
    for engine in (calm, disturbed):
        take_step(engine, 1)
    before, raised = own_state(disturbed), False
    try:
        take_step(disturbed, 2, poison=float("nan"))
    except DivergedError:
        raised = True
    untouched = equal(own_state(disturbed), before)
    norms = [take_step(engine, 3) for engine in (calm, disturbed)]
    same = equal(own_state(calm), own_state(disturbed)) and torch.equal(*norms)
    return Refusal(raised, untouched, same)


def follow(config: Config) -> Averaged:
    """Both averages of one generator over three steps, then from each other's state."""
    engine, replica = generator_engine(config), build_generator(config, CPU)
    sharded = ShardedAverage(build_generator(config, CPU), engine)
    plain = PlainAverage(build_generator(config, CPU), replica)
    for number in (1, 2, 3):
        take_step(engine, number)
        weights = whole(engine.state_fragments())
        with torch.no_grad():
            for name, parameter in replica.named_parameters():
                parameter.copy_(weights[f"generator/{name}"])
        sharded.update(0.9)
        plain.update(0.9)
    written = whole(sharded.state_fragments())
    expected = {f"ema/{n}": p.detach() for n, p in plain.generator.named_parameters()}
    left_whole = held_bytes(sharded.generator)
    with sharded.whole() as generator, torch.no_grad():
        found = {f"ema/{n}": p.detach().clone() for n, p in generator.named_parameters()}
        latent = torch.ones(2, 8)
        same_video = torch.equal(generator(latent, None, None), plain.generator(latent, None, None))
    left_whole += held_bytes(sharded.generator)
    fresh = ShardedAverage(build_generator(config, CPU), engine)
    fresh.load_state_tensors(written)
    with fresh.whole() as generator:
        again = {f"ema/{n}": p.detach().clone() for n, p in generator.named_parameters()}
    differ = max((found[name] - expected[name]).abs().max().item() for name in expected)
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    return Averaged(
        differs_by=differ,
        restored=equal(found, again) and (same_video or differ > 0),
        written_once=equal(found, written) and sharded.parameter_shapes() == shapes,
        left_whole=left_whole,
    )


def held_bytes(module: nn.Module) -> int:
    return sum(parameter.untyped_storage().size() for parameter in module.parameters())


def whole(pieces: list[Any]) -> dict[str, Tensor]:
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, pieces)
    return put_together([piece for some in everywhere for piece in some])


@pytest.mark.parametrize("index", range(len(REFUSALS)), ids=map(str, REFUSALS))
def test_a_gradient_that_is_nan_on_one_rank_updates_nothing(index: int, found: list[Found]) -> None:
    for rank in found:
        assert rank.refusals[index] == Refusal(raised=True, untouched=True, as_if_never=True)


def test_stage_3_lets_go_of_all_weights_between_steps(found: list[Found]) -> None:
    assert [rank.gathered for rank in found] == [[], []]


def test_stage_3_keeps_a_bucket_of_a_tenth_of_the_network() -> None:
    settings = deepspeed_settings(ShardingConfig(zero_stage=3), [100, 900], "cpu")
    assert settings["zero_optimization"]["reduce_bucket_size"] == 100


@pytest.mark.parametrize("stage", [1, 2])
def test_a_network_may_have_an_odd_number_of_parameters(stage: int) -> None:
    """DeepSpeed's assertion about its buckets would end the run."""
    settings = deepspeed_settings(ShardingConfig(zero_stage=stage), [100, 901], "cpu")
    assert settings["zero_optimization"]["allgather_bucket_size"] == 1002


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_clips_nothing(stage: int) -> None:
    """Its default is a norm of 1; left out or None, it clips."""
    settings = deepspeed_settings(ShardingConfig(zero_stage=stage), [100, 900], "cpu")
    assert settings["gradient_clipping"] == 0


class Copying:
    """Of DeepSpeed's optimizer with its state on the CPU: a GPU that still sends gradients."""

    cpu_offload = True

    def __init__(self) -> None:
        self.flat = nn.Parameter(torch.zeros(4))
        self.flat.grad = torch.zeros(4)
        self.single_partition_of_fp32_groups = [self.flat]
        self.bit16_groups: list[list[nn.Parameter]] = [[]]
        self.round_robin_bit16_offsets: list[list[int]] = [[]]
        self.partition_size = [4]

    def _wait_for_offload_copies(self) -> None:
        assert self.flat.grad is not None
        self.flat.grad.fill_(1.0)


def test_offloaded_gradients_are_read_when_they_have_come() -> None:
    (gradients,) = make_shards(2, Copying(), nn.Module(), rank=0, size=1).gradients()
    assert gradients.tolist() == [1.0] * 4


@pytest.mark.parametrize("stage", STAGES)
def test_a_fresh_start_is_that_of_the_plain_engines(stage: int, found: list[Found]) -> None:
    assert [rank.fresh[stage] for rank in found] == [[], []]


@pytest.mark.parametrize("stage", STAGES)
def test_the_sharded_average_equals_the_plain_one(stage: int, found: list[Found]) -> None:
    for rank in found:
        average = rank.averages[stage]
        assert average.differs_by <= 1e-7
        assert average.restored
        assert average.written_once


@pytest.mark.parametrize("stage", STAGES)
def test_the_whole_average_is_let_go_after_sampling(stage: int, found: list[Found]) -> None:
    """And its start weights once their slices are taken."""
    assert [rank.averages[stage].left_whole for rank in found] == [0, 0]


class Larger(ZeroEngine):
    """The optimizer is given a hundredth more than the gradient."""

    def step(self, learning_rate: float) -> Tensor:
        torch._foreach_mul_(self.shards.gradients(), 1.01)
        return super().step(learning_rate)


def larger(name: str, module: Any, optim: NetworkOptimConfig, sharding: ShardingConfig,
           precision: str, accumulation: int) -> Engine:  # fmt: skip
    return Larger(name, module, optim, sharding, precision=precision, accumulation=accumulation)


def larger_configs() -> list[Config]:
    return [
        with_values(
            config_of(1),
            {f"optim.{network}.{key}": value for network in NETWORKS for key, value in own.items()},
        )
        for own in OPTIMIZERS.values()
    ]


@pytest.mark.parametrize("index", range(len(OPTIMIZERS)), ids=list(OPTIMIZERS))
def test_the_difference_of_gradients_is_theirs(index: int, found: list[Found]) -> None:
    """Whatever the optimizer makes of them: under Adam the weights hardly show their size."""
    assert found[0].larger[index].gradients == pytest.approx(0.01, rel=0.03)


class Unaveraged(ZeroEngine):
    """Gradients are summed over the ranks: a plain mistake that must not pass."""

    def backward(self, loss: Tensor) -> None:
        super().backward(loss * self.world_size)


def unaveraged(name: str, module: Any, optim: NetworkOptimConfig, sharding: ShardingConfig,
               precision: str, accumulation: int) -> Engine:  # fmt: skip
    return Unaveraged(name, module, optim, sharding, precision=precision, accumulation=accumulation)


PARITY = {
    "cluster.num_workers": 2,
    "cluster.generator.zero_stage": 3,
    "cluster.discriminator.zero_stage": 2,
}


def test_parity_holds_and_says_what_it_measured() -> None:
    report = check_parity(Config().model_copy(update={"cluster": tiny_config(PARITY).cluster}))
    assert report.passed
    assert "equal to plain PyTorch" in str(report)
    assert "3 steps in float32 on 2 workers (cpu), generator at ZeRO-3" in str(report)
    assert "discriminator at ZeRO-2" in str(report)
    assert "gradients differ by" in str(report)


def test_parity_is_red_for_a_wrong_engine() -> None:
    report = check_parity(tiny_config(PARITY), make_engine=unaveraged)
    assert not report.passed
    assert "NOT EQUAL" in str(report)
    assert report.difference.gradient_norms > 0.5
    assert report.difference.gradients > 0.5


def broken(*_: object) -> Engine:
    raise ValueError("no engine today")


def test_an_engine_that_fails_is_said_in_one_line() -> None:
    with pytest.raises(ParityError, match=r"rank \d failed: ValueError: no engine today; take o"):
        check_parity(tiny_config(PARITY), make_engine=broken)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"cluster.discriminator.zero_stage": 3, "loss.penalty_form": "exact"},
            "loss.penalty_form=exact",
        ),
        (  # it is measured all the same
            {"cluster.discriminator.zero_stage": 3, "loss.penalty_form": "exact", "loss.gamma": 0},
            "loss.penalty_form=exact",
        ),
        ({"cluster.generator.offload_parameters": True}, "cluster.generator.zero_stage=3"),
        (
            {"cluster.generator.offload_optimizer": True, "cluster.generator.zero_stage": 0},
            "cluster.generator.offload_optimizer=true",
        ),
    ],
)
def test_impossible_combinations_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_sharding(tiny_config(values))
    check_sharding(tiny_config({"cluster.generator.zero_stage": 3, "loss.penalty_form": "exact"}))
