"""The deterministic stream of training clips, for one rank of any number.

The order is a function of (seed, epoch) alone; see `order`. A rank owns whole lanes, its loader
workers share them, and each clip knows its place in the global batch: so the number of ranks and
workers changes nothing, a lane reads about 1/L of the shards, every clip comes once an epoch,
batches run on over an epoch's end, and the whole position is one number: samples delivered to all
ranks. A damaged sample is replaced in its place and counted; see `clip_reader` and `damage`.
"""

import atexit
import contextlib
import itertools
import math
import multiprocessing
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from distgan import storage
from distgan.config import DataConfig, StorageConfig
from distgan.data.clip_reader import ClipReader
from distgan.data.damage import DamageTally, ShardDamage
from distgan.data.manifest import Manifest, read_manifest
from distgan.data.order import EpochOrder
from distgan.errors import DistganError, UserError

REFERENCE_EPOCH = 1_000_000_000  # draws starts and strides of reference clips; no run gets there
REFERENCE_SEED = 0  # so that runs of different seeds are measured against the same clips


@dataclass(frozen=True)
class ClipBatch:
    clips: Tensor
    """uint8 (B / ranks, 3, T, H, W), channels last in memory."""
    places: tuple[int, ...]
    """Each clip's place in the global batch, ascending."""


class LanePart(NamedTuple):
    """What one worker has of a batch."""

    places: list[int]
    clips: Tensor
    """uint8 (b, T, H, W, 3)."""
    damage: tuple[ShardDamage, ...]
    """Found while these clips were read, and not told before by this worker."""


class ClipStream:
    """Batches of one data set from a position on; see the module's text for the order.

    Args:
        folder: the data set.
        config: clip length, stride, lanes, workers.
        seed: of the order and of each clip's start and stride.
        batch_size: clips a global batch; a multiple of config.lanes.
        rank: which of the ranks that share each batch this is.
        ranks: their number; divides config.lanes.

    Raises:
        UserError: there is no data set, or it does not fit the configuration or the ranks.
    """

    def __init__(
        self,
        folder: str,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.manifest, self.digest = read_manifest(folder)
        check_fits(self.manifest, config, folder)
        self.folder, self.config = folder, config
        if config.lanes % ranks:
            raise UserError(
                f"data.lanes={config.lanes} is not a multiple of the {ranks} training processes, "
                "each of which reads whole lanes; change data.lanes or their number"
            )
        self.batch_size = batch_size
        self.lanes = range(rank, config.lanes, ranks)
        """Those of this rank."""
        sizes = [shard.samples for shard in self.manifest.shards]
        self.order = EpochOrder(sizes, seed=seed, lanes=config.lanes)
        self.damage = DamageTally(folder, self.manifest, config.max_damaged_fraction)
        """Of what was delivered, not of what workers have read ahead."""

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of the clips that training takes."""
        size = self.config.resolution
        return self.config.clip_frames, size, size, 3

    @property
    def samples_an_epoch(self) -> int:
        return self.order.samples

    def batches(
        self, start: int = 0, *, pin_memory: bool = False
    ) -> Generator[ClipBatch, None, None]:
        """This rank's part of endless batches from the `start`-th sample of all ranks on.

        Close it to end its loader workers. What is damaged is counted in `self.damage` and named
        in one line a shard.

        Args:
            start: a multiple of the batch size.
            pin_memory: put the clips where a GPU can fetch them while the program goes on.

        Raises:
            UserError: more is damaged than `data.max_damaged_fraction`, or a shard can't be read.
            StorageError: object storage failed for longer than `storage.retry_seconds`.
        """
        assert start % self.batch_size == 0
        parts = self._parts_of_workers(start) if self.config.num_workers else self._parts(start)
        with contextlib.closing(parts):
            for of_workers in parts:
                self._count(damage for part in of_workers for damage in part.damage)
                yield _join(of_workers, pin_memory)

    def _parts(self, start: int) -> Generator[list[LanePart], None, None]:
        """Each batch as one part, read in this process."""
        with contextlib.closing(_LaneBatches(self, start).parts()) as parts:
            for part in parts:
                yield [part]

    def _parts_of_workers(self, start: int) -> Generator[list[LanePart], None, None]:
        """Each batch in parts, one of each worker process."""
        workers = min(self.config.num_workers, len(self.lanes))
        others = set(multiprocessing.active_children())
        loader = iter(
            DataLoader(
                _LaneBatches(self, start),
                batch_size=None,
                num_workers=workers,
                multiprocessing_context="spawn",
                prefetch_factor=4,
                worker_init_fn=partial(_start_worker, storage.options()),
            )
        )
        # A loader that something still holds at the program's end asks its workers to leave with
        # a SIGTERM, which they ignore, and would then wait for them without end.
        end_workers = partial(_kill, set(multiprocessing.active_children()) - others)
        atexit.register(end_workers)
        try:
            while True:
                yield [_unwrap(next(loader)) for _ in range(workers)]
        finally:
            del loader  # workers that it can still reach leave by themselves
            end_workers()
            atexit.unregister(end_workers)

    def reference_clips(self, count: int) -> Tensor:
        """The same real clips at every call and for every seed, spread evenly over the data set:
        uint8 (count, 3, T, H, W). With fewer samples than `count`, samples come again at other
        starts."""
        order = EpochOrder(self.order.shard_sizes, seed=REFERENCE_SEED, lanes=self.config.lanes)
        reader = ClipReader(self.folder, self.manifest, self.config, order, capacity=1)
        chosen = sorted((index * self.samples_an_epoch) // count for index in range(count))
        ends = np.cumsum(self.order.shard_sizes)
        clips = np.empty((count, *self.clip_shape), dtype=np.uint8)
        for index, number in enumerate(chosen):
            shard = int(np.searchsorted(ends, number, side="right"))
            place = number - int(ends[shard]) + self.order.shard_sizes[shard]
            reader.clip(REFERENCE_EPOCH + index, (shard, place), clips[index])
        self._count(reader.take_damage())
        return torch.from_numpy(clips).permute(0, 4, 1, 2, 3)

    def reader(self, capacity: int) -> ClipReader:
        """Reads clips in this process, with at most so many shards in memory."""
        return ClipReader(self.folder, self.manifest, self.config, self.order, capacity=capacity)

    def _count(self, damages: Iterable[ShardDamage]) -> None:
        for line in self.damage.add(damages):
            tqdm.write(line)
        self.damage.check()


def _unwrap(part: LanePart | DistganError) -> LanePart:
    if isinstance(part, DistganError):
        raise part
    return part


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


def _start_worker(options: StorageConfig, worker: int) -> None:
    storage.configure(options)
    # Ctrl-C reaches the whole process group; the parent then still needs its next batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _LaneBatches(IterableDataset[LanePart | DistganError]):
    """The part of each batch that this worker's lanes hold.

    A worker hands over a user's error as a value: raised there, the loader would bury its message
    in a traceback.
    """

    def __init__(self, stream: ClipStream, start: int) -> None:
        self.stream, self.start = stream, start

    def __iter__(self) -> Iterator[LanePart | DistganError]:
        try:
            with contextlib.closing(self.parts()) as parts:
                yield from parts
        except DistganError as error:
            yield error

    def parts(self) -> Generator[LanePart, None, None]:
        """The same, raising its errors."""
        stream, info = self.stream, get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        lanes = stream.lanes[worker::workers]
        places = [p for p in range(stream.batch_size) if p % stream.config.lanes in lanes]
        reader = stream.reader(capacity=len(lanes) + 1)
        with reader.reading_ahead(self.start, lanes) as ahead:
            # Nothing that the first batch can do without is read before it.
            ahead.look_ahead(self.start + stream.batch_size)
            for position in itertools.count(self.start, stream.batch_size):
                samples = [stream.order.sample(position + place) for place in places]
                shape = (len(places), *stream.clip_shape)
                clips = _new_shared(shape) if info else torch.empty(shape, dtype=torch.uint8)
                for (epoch, sample), clip in zip(samples, clips.numpy(), strict=True):
                    reader.clip(epoch, sample, clip)
                yield LanePart(places, clips, reader.take_damage())
                ahead.look_ahead(position + stream.batch_size + stream.samples_an_epoch)


def _new_shared(shape: tuple[int, ...]) -> Tensor:
    """uint8, in memory that the parent process can see: nothing is copied on the way there."""
    # As torch.utils.data's own collate function makes it.
    memory = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(memory).reshape(shape)


def _join(parts: Sequence[LanePart], pin_memory: bool) -> ClipBatch:
    """The parts of all workers as one batch, in the order of their places."""
    if len(parts) == 1 and not pin_memory:
        joined, places = parts[0].clips, parts[0].places
    else:
        places = sorted(place for part in parts for place in part.places)
        shape = (len(places), *parts[0].clips.shape[1:])
        if pin_memory:
            joined = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            joined = torch.from_numpy(np.empty(shape, dtype=np.uint8))  # NumPy takes huge pages
        row = {place: index for index, place in enumerate(places)}
        for part in parts:
            for place, clip in zip(part.places, part.clips, strict=True):
                joined[row[place]].copy_(clip)  # one indexed assignment goes byte by byte
    return ClipBatch(joined.permute(0, 4, 1, 2, 3), tuple(places))


def check_fits(manifest: Manifest, config: DataConfig, folder: str) -> None:
    """Raises `UserError` unless the data set has clips for this configuration."""
    spec = manifest.clip
    if spec.resolution != config.resolution:
        raise UserError(
            f"the data set {folder} has clips of {spec.resolution} pixels, but "
            f"data.resolution={config.resolution}; prepare it again at this size, or set "
            f"data.resolution={spec.resolution}"
        )
    needed = (config.clip_frames - 1) * config.frame_stride + 1
    if spec.stored_frames < needed:
        raise UserError(
            f"the data set {folder} stores clips of {spec.stored_frames} frames, but "
            f"data.clip_frames={config.clip_frames} at data.frame_stride={config.frame_stride} "
            f"needs {needed}; lower one of them, or prepare with prepare.stored_frames={needed}"
        )
    if manifest.samples == 0:
        raise UserError(f"the data set {folder} holds no clips; prepare it again")
