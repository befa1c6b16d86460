"""Each batch in parts: read in this process, or by loader workers, each of which has some lanes.

Workers put clips where the training process sees them, into memory that is made once and used
again and again: fresh memory would cost them a tenth of what decoding does.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import multiprocessing
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from distgan import storage
from distgan.buffers import new_array
from distgan.config import StorageConfig
from distgan.data.damage import ShardDamage
from distgan.errors import DistganError

if TYPE_CHECKING:
    from distgan.data.stream import ClipStream

AHEAD = 4
"""Batches that each worker reads ahead."""


class LanePart(NamedTuple):
    """What one process has of a batch."""

    places: list[int]
    clips: Tensor
    """uint8 (b, T, H, W, 3); a worker's are valid until the next batch is asked for."""
    damage: tuple[ShardDamage, ...]
    """Found while these clips were read, and not told before by who read them."""


class _Filled(NamedTuple):
    """A worker's word that its part of a batch lies in one of its slots."""

    slot: int
    damage: tuple[ShardDamage, ...]


def parts_here(stream: ClipStream, start: int) -> Generator[list[LanePart], None, None]:
    """Each batch as one part, read in this process, in memory of its own."""
    own = _OwnPart(stream, start, stream.lanes)
    fresh = (new_array(own.shape) for _ in itertools.repeat(None))
    with contextlib.closing(own.read(fresh)) as filled:
        for clips, damage in filled:
            yield [LanePart(own.places, torch.from_numpy(clips), damage)]


def parts_of_workers(
    stream: ClipStream, start: int, workers: int
) -> Generator[list[LanePart], None, None]:
    """Each batch in parts, one of each worker process."""
    dataset = _OfWorkers(stream, start, workers)
    others = set(multiprocessing.active_children())
    loader = iter(
        DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="spawn",
            prefetch_factor=AHEAD,
            worker_init_fn=partial(_start_worker, storage.options()),
        )
    )
    # A loader that something still holds at the program's end asks its workers to leave with
    # a SIGTERM, which they ignore, and would then wait for them without end.
    end_workers = partial(_kill, set(multiprocessing.active_children()) - others)
    atexit.register(end_workers)
    try:
        while True:
            yield [dataset.part(worker, next(loader)) for worker in range(workers)]
    finally:
        del loader  # workers that it can still reach leave by themselves
        end_workers()
        atexit.unregister(end_workers)


def _start_worker(options: StorageConfig, worker: int) -> None:
    storage.configure(options)
    # Ctrl-C reaches the whole process group; the parent then still needs its next batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


class _OwnPart:
    """The part of each batch that some lanes hold, from a position on."""

    def __init__(self, stream: ClipStream, start: int, lanes: Sequence[int]) -> None:
        self.stream, self.start, self.lanes = stream, start, lanes
        every = range(stream.batch_size)
        self.places = [place for place in every if place % stream.config.lanes in lanes]

    @property
    def shape(self) -> tuple[int, ...]:
        """(b, T, H, W, 3)."""
        return len(self.places), *self.stream.clip_shape

    def read(
        self, memory: Iterator[NDArray[np.uint8]]
    ) -> Generator[tuple[NDArray[np.uint8], tuple[ShardDamage, ...]], None, None]:
        """Fills one array of `memory` after the other, and tells what was damaged."""
        stream = self.stream
        reader = stream.reader(capacity=len(self.lanes) + 1)
        with reader.reading_ahead(self.start, self.lanes) as ahead:
            # Nothing that the first batch can do without is read before it.
            ahead.look_ahead(self.start + stream.batch_size)
            for position in itertools.count(self.start, stream.batch_size):
                clips = next(memory)
                for place, clip in zip(self.places, clips, strict=True):
                    epoch, sample = stream.order.sample(position + place)
                    reader.clip(epoch, sample, clip)
                yield clips, reader.take_damage()
                passed = position + stream.batch_size
                ahead.look_ahead(passed + stream.samples_an_epoch, passed=passed)


class _OfWorkers(IterableDataset[_Filled | DistganError]):
    """What the loader runs in each worker; and the memory that they share with this process.

    A worker has as many slots as it reads ahead, and one for the part that was handed over: the
    loader asks a worker for another part when it hands one over, so that slot is written to again
    only after the next part has been asked for.
    """

    def __init__(self, stream: ClipStream, start: int, workers: int) -> None:
        own = [_OwnPart(stream, start, stream.lanes[n::workers]) for n in range(workers)]
        self.parts = own
        self.slots = [_new_shared((AHEAD + 1, *part.shape)) for part in own]
        """Of each worker: uint8 (slots, b, T, H, W, 3)."""

    def __iter__(self) -> Iterator[_Filled | DistganError]:
        """In a worker. A user's error is handed over as a value: raised here, the loader would bury
        its message in a traceback."""
        info = get_worker_info()
        assert info is not None
        part, slots = self.parts[info.id], self.slots[info.id].numpy()
        try:
            with contextlib.closing(part.read(itertools.cycle(slots))) as filled:
                for number, (_, damage) in enumerate(filled):
                    yield _Filled(number % len(slots), damage)
        except DistganError as error:
            yield error

    def part(self, worker: int, filled: _Filled | DistganError) -> LanePart:
        """What a worker has handed over."""
        if isinstance(filled, DistganError):
            raise filled
        return LanePart(self.parts[worker].places, self.slots[worker][filled.slot], filled.damage)


def _new_shared(shape: tuple[int, ...]) -> Tensor:
    """uint8, in memory that worker processes see."""
    # As torch.utils.data's own collate function makes it.
    memory = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(memory).reshape(shape)
