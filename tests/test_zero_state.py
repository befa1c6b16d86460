"""State of the ZeRO engines and their average: any stage and world size writes it, any other goes
on from it, and the averaged generator in it is the one that a run exports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from cluster.engine_pairs import own_places, plain_engines, random_clips, sharded_engines, stir
from cluster.ranks import run_on_ranks
from cluster.sharded_average import ShardedAverage
from cluster.zero import ZeroEngine
from distgan.adversarial_step import AdversarialStep
from distgan.checkpoint import (
    Fragment,
    checkpoint_folder,
    commit,
    read_checkpoint,
    write_fragments,
)
from distgan.config import Config
from distgan.ema import Average, PlainAverage
from distgan.engine import Engine
from distgan.export import TrainedGenerator, export_generator, load_generator
from distgan.generator import Generator
from distgan.networks import build_generator
from distgan.sampling import Sampler
from distgan.timing import PartTimer
from tests.tiny_networks import CPU, tiny_config

STAGES, SIZES = (0, 1, 2, 3), (1, 2)
WRITERS = ["plain", *(f"stage {stage} of {size}" for stage in STAGES for size in SIZES)]
# Of a tensor's largest element, after one further step: other sizes sum in another order.
ROUNDING = 1e-5
SAME_LOSS = 1e-6
STEP = 2
"""Of every checkpoint."""
DECAY = 0.5
"""Of the averages, which start from other weights than the engines."""


@dataclass(frozen=True)
class Training:
    """All that a checkpoint is made of."""

    adversarial: AdversarialStep
    average: Average

    @property
    def config(self) -> Config:
        return self.adversarial.config

    @property
    def engines(self) -> tuple[Engine, Engine]:
        return self.adversarial.generator, self.adversarial.discriminator


def config_of(stage: int) -> Config:
    """A generator under Adam and a discriminator under SGD with momentum."""
    return tiny_config({
        "cluster.generator.zero_stage": stage,
        "cluster.discriminator.zero_stage": stage,
        "optim.discriminator.kind": "sgd",
        "optim.discriminator.momentum": 0.9,
        "optim.discriminator.lr": 1e-3,
        "loss.penalty_interval": 2,
        "loss.gamma": 0.1,
    })  # fmt: skip


State = dict[str, Tensor]
Arrays = dict[str, NDArray[Any]]
"""A state to hand on: each tensor that goes from process to process takes a file descriptor."""


@dataclass(frozen=True)
class Continued:
    """What a training holds that wrote, or loaded, what a writer wrote; and how it goes on."""

    writer: str
    loaded: Arrays
    losses: dict[str, float]
    """Of the first further step, over the global batch."""
    after_one: Arrays
    after_two: Arrays


def take(training: Training, step: int) -> dict[str, float]:
    """One step on this process's part of the batch; its losses over all."""
    size = training.config.train.batch_size
    places = own_places(size) if torch.distributed.is_initialized() else range(size)
    clips = random_clips(training.config, step, CPU)
    metrics = training.adversarial.run(clips[places.start : places.stop], places, step)
    training.average.update(DECAY)
    losses = {name: value for name, value in metrics.items() if name.startswith("loss/")}
    if torch.distributed.is_initialized():
        for loss in losses.values():
            torch.distributed.all_reduce(loss, torch.distributed.ReduceOp.AVG)
    return {name: loss.item() for name, loss in losses.items()}


def go_on(training: Training, writer: str) -> Continued:
    """Steps 3 and 4."""
    loaded = arrays(training)
    losses = take(training, 3)
    after_one = arrays(training)
    take(training, 4)
    return Continued(writer, loaded, losses, after_one, arrays(training))


def arrays(training: Training) -> Arrays:
    return {name: tensor.numpy() for name, tensor in whole_state(training).items()}


def fragments_of(training: Training) -> list[Fragment]:
    parts = (*training.engines, training.average)
    return [fragment for part in parts for fragment in part.state_fragments()]


def put_together(pieces: Sequence[Fragment]) -> State:
    """Whole tensors from the fragments of all ranks."""
    whole: State = {}
    for name in {piece.name for piece in pieces}:
        own = sorted((p for p in pieces if p.name == name), key=lambda p: p.start)
        whole[name] = torch.cat([p.values for p in own]).reshape(own[0].shape)
    return whole


def whole_state(training: Training) -> State:
    """The same on all ranks."""
    if not torch.distributed.is_initialized():
        return put_together(fragments_of(training))
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, fragments_of(training))
    return put_together([piece for pieces in everywhere for piece in pieces])


def sharded_training(config: Config) -> Training:
    generator, discriminator = sharded_engines(config, CPU)
    assert isinstance(generator, ZeroEngine)
    average = ShardedAverage(build_generator(config, CPU), generator)
    return Training(AdversarialStep(config, generator, discriminator, PartTimer(CPU)), average)


def plain_training() -> Training:
    config = config_of(0)
    generator, discriminator = plain_engines(config, CPU)
    average = PlainAverage(build_generator(config, CPU), generator.module)
    return Training(AdversarialStep(config, generator, discriminator, PartTimer(CPU)), average)


def write_everywhere(folder: str) -> list[Continued]:
    """On a rank: each stage takes two steps, writes a checkpoint, and goes on."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    continued = []
    for stage in STAGES:
        training = sharded_training(config_of(stage))
        start(training)
        writer = f"stage {stage} of {size}"
        part = write_fragments(place(folder, writer), f"rank-{rank}", fragments_of(training))
        parts: list[Any] = [None] * size
        torch.distributed.all_gather_object(parts, part)
        with training.average.whole() as generator:
            if rank == 0:
                finish(folder, writer, parts, training.config, generator)
        continued.append(go_on(training, writer))
    return continued


def write_plain(folder: str, training: Training) -> None:
    part = write_fragments(place(folder, "plain"), "all", fragments_of(training))
    with training.average.whole() as generator:
        finish(folder, "plain", [part], training.config, generator)


def place(folder: str, writer: str) -> str:
    """Of a writer's checkpoint, in a run folder of its own."""
    return checkpoint_folder(f"{folder}/{writer}", STEP)


def finish(
    folder: str, writer: str, parts: Sequence[Any], config: Config, average: Generator
) -> None:
    """Commits what all ranks have written, and exports the average as a run does at its end."""
    tree = config.model_dump(mode="json")
    commit(place(folder, writer), parts, {"config": tree, "frame_rate_hz": 7.5})
    trained = TrainedGenerator(generator=average, config=config, step=STEP, frame_rate_hz=7.5)
    export_generator(f"{folder}/{writer}", trained)


def start(training: Training) -> None:
    """Steps 1 and 2 from the same stirred weights in all engines, by way of a state without
    optimizers."""
    for seed, engine in enumerate(plain_engines(training.config, CPU)):
        stir(engine.module, seed)
        training.engines[seed].load_state_tensors(engine.state_tensors())
    for step in (1, 2):
        take(training, step)


def read_everything(folder: str) -> dict[str, list[Continued]]:
    """On a rank: each stage goes on from what every writer wrote."""
    size = torch.distributed.get_world_size()
    found = {}
    for stage in STAGES:
        own = f"stage {stage} of {size}"
        training = sharded_training(config_of(stage))
        continued = []
        for writer in sorted(WRITERS, key=lambda name: name != own):  # its own into a fresh engine
            load(training, folder, writer)
            continued.append(go_on(training, writer))
        found[own] = continued
    return found


def load(training: Training, folder: str, writer: str) -> None:
    tensors = read_checkpoint(place(folder, writer), STEP).tensors
    for part in (*training.engines, training.average):
        part.load_state_tensors(tensors)


@dataclass(frozen=True)
class Journey:
    """From a writer to a reader, and on; beside the writer that never stopped."""

    same_names: bool
    same_state: bool
    """In every bit, as loaded."""
    loss_difference: float
    """The largest of the first step's losses, relative."""
    difference: float
    """The largest after one step, relative to the largest element of its tensor."""
    same_end: bool
    """In every bit, after two steps."""


@dataclass(frozen=True)
class Journeys:
    by_pair: dict[tuple[str, str], Journey]
    """By writer and reader."""
    folder: str


def same_bits(a: Arrays, b: Arrays) -> bool:
    return all(np.array_equal(values, b[name]) for name, values in a.items())


def compare(expected: Continued, found: Continued) -> Journey:
    assert expected.losses.keys() == found.losses.keys() and len(expected.losses) >= 2
    return Journey(
        same_names=expected.loaded.keys() == found.loaded.keys(),
        same_state=same_bits(expected.loaded, found.loaded),
        loss_difference=max(
            abs(found.losses[name] - loss) / abs(loss) for name, loss in expected.losses.items()
        ),
        difference=max(
            float(np.abs(found.after_one[name] - values).max() / max(np.abs(values).max(), 1e-3))
            for name, values in expected.after_one.items()
        ),
        same_end=same_bits(expected.after_two, found.after_two),
    )


@pytest.fixture(scope="module")
def journeys(tmp_path_factory: pytest.TempPathFactory) -> Journeys:
    folder = str(Path(tmp_path_factory.mktemp("states")))
    plain = plain_training()
    start(plain)
    write_plain(folder, plain)
    uninterrupted = {"plain": go_on(plain, "plain")}
    for size in SIZES:
        for continued in run_on_ranks(write_everywhere, (folder,), world_size=size)[0]:
            uninterrupted[continued.writer] = continued
    resumed = {}
    for size in SIZES:
        for reader, found in run_on_ranks(read_everything, (folder,), world_size=size)[0].items():
            resumed |= {(continued.writer, reader): continued for continued in found}
    for writer in WRITERS:
        training = plain_training()
        load(training, folder, writer)
        resumed[writer, "plain"] = go_on(training, writer)
    by_pair = {pair: compare(uninterrupted[pair[0]], found) for pair, found in resumed.items()}
    return Journeys(by_pair, folder)


@pytest.mark.parametrize("reader", WRITERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_any_engine_goes_on_from_any_other(writer: str, reader: str, journeys: Journeys) -> None:
    journey = journeys.by_pair[writer, reader]
    """With weights, optimizer state and average that are, as loaded, those of the writer."""
    assert journey.same_names
    assert journey.same_state
    assert journey.loss_difference < SAME_LOSS
    assert journey.difference < ROUNDING
    assert journey.same_end or reader != writer


def test_all_engines_write_the_same_tensors(journeys: Journeys) -> None:
    described = {
        writer: {
            name: (tensor.shape, tensor.dtype)
            for name, tensor in read_checkpoint(
                place(journeys.folder, writer), STEP
            ).tensors.items()
        }
        for writer in WRITERS
    }
    assert all(tensors == described["plain"] for tensors in described.values())
    for kind in ("/step", "/exp_avg", "/momentum_buffer"):
        assert any(name.endswith(kind) for name in described["plain"])
    assert any(name.startswith("ema/") for name in described["plain"])


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_share_the_writing(stage: int, journeys: Journeys) -> None:
    folder = Path(place(journeys.folder, f"stage {stage} of 2"))
    first, second = ((folder / f"rank-{rank}.safetensors").stat().st_size for rank in range(2))
    assert 0.8 < first / second < 1.25


@pytest.mark.parametrize("writer", WRITERS)
def test_any_checkpoint_gives_the_generator_that_the_run_exported(
    writer: str, journeys: Journeys
) -> None:
    """In every bit; and its clips are those of the plain engines' but for rounding."""
    run = f"{journeys.folder}/{writer}"
    sources = {"checkpoint": run, "export": f"{run}/generator"}
    trained = {name: load_generator(source, CPU) for name, source in sources.items()}
    own, exported = (dict(one.generator.named_parameters()) for one in trained.values())
    assert own.keys() == exported.keys()
    assert all(torch.equal(values, exported[name]) for name, values in own.items())
    assert trained["checkpoint"].config == trained["export"].config
    clips, same = (Sampler(one.generator, "fp32").clips([0, 1]) for one in trained.values())
    assert torch.equal(clips, same)
    plain = load_generator(f"{journeys.folder}/plain", CPU).generator
    assert (clips.int() - Sampler(plain, "fp32").clips([0, 1]).int()).abs().max() <= 1
