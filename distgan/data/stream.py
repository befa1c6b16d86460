"""The deterministic stream of training clips.

The order is a function of (seed, epoch) alone. Samples of all epochs form one endless sequence;
its j-th sample belongs to epoch j // N and is read by lane j mod L. Within an epoch the shards are
shuffled and laid end to end, each lane takes one contiguous piece of that row, and samples are
shuffled inside each shard. So a lane reads about 1/L of the shards, every clip comes once an epoch,
batches run on over an epoch's end, and the whole position is one number: samples delivered. A
damaged sample is replaced in its place and counted; see `clip_reader` and `damage`.
"""

import atexit
import multiprocessing
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from distgan import storage
from distgan.config import DataConfig, StorageConfig
from distgan.data.clip_reader import ClipReader, Sample
from distgan.data.damage import DamageTally, ShardDamage
from distgan.data.manifest import Manifest, read_manifest
from distgan.errors import DistganError, UserError
from distgan.seeding import numpy_generator

REFERENCE_EPOCH = 1_000_000_000  # draws starts and strides of reference clips; no run gets there


class EpochOrder:
    """Which sample the j-th place of the endless sequence holds."""

    def __init__(self, shard_sizes: Sequence[int], *, seed: int, lanes: int) -> None:
        self.shard_sizes = tuple(shard_sizes)
        self.samples = sum(shard_sizes)
        self.seed, self.lanes = seed, lanes
        self._rows: dict[int, NDArray[np.int64]] = {}  # of the last two epochs asked for

    def sample(self, position: int) -> tuple[int, Sample]:
        """(epoch, sample) of the `position`-th sample since the start of training."""
        epoch, within = divmod(position, self.samples)
        first = epoch * self.samples  # the epoch's first position belongs to lane first mod L
        lane = position % self.lanes
        offset = 0
        for other in range(lane):
            offset += self._lane_length(first, other)
        rank = (within - (lane - first) % self.lanes) // self.lanes
        shard, index = self._row(epoch)[offset + rank]
        return epoch, (int(shard), int(index))

    def shards_from(self, epoch: int, shard: int) -> list[int]:
        """All shards in the order of an epoch's row, from `shard` on and round to it."""
        order = [int(other) for other in self._shard_order(epoch)]
        place = order.index(shard)
        return order[place:] + order[:place]

    def _shard_order(self, epoch: int) -> NDArray[np.int64]:
        rng = numpy_generator(self.seed, "shard order", epoch)
        return rng.permutation(len(self.shard_sizes))

    def _lane_length(self, first: int, lane: int) -> int:
        return (self.samples - (lane - first) % self.lanes + self.lanes - 1) // self.lanes

    def _row(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._rows:
            self._rows = {e: row for e, row in self._rows.items() if e == epoch - 1}
            self._rows[epoch] = self._make_row(epoch)
        return self._rows[epoch]

    def _make_row(self, epoch: int) -> NDArray[np.int64]:
        """All samples of an epoch, (N, 2): shuffled shards end to end, shuffled inside."""
        return np.concatenate(
            [
                np.stack(
                    (
                        np.full(self.shard_sizes[shard], shard),
                        numpy_generator(self.seed, "sample order", epoch, int(shard)).permutation(
                            self.shard_sizes[shard]
                        ),
                    ),
                    axis=1,
                )
                for shard in self._shard_order(epoch)
            ]
        )


@dataclass(frozen=True)
class ClipBatch:
    clips: Tensor
    """uint8 (B, 3, T, H, W), channels last in memory."""
    places: tuple[int, ...]
    """Each clip's place in the global batch."""


class ClipStream:
    """Batches of one data set from a position on; see the module's text for the order.

    Args:
        folder: the data set.
        config: clip length, stride, lanes, workers.
        seed: of the order and of each clip's start and stride.
        batch_size: clips a global batch; a multiple of config.lanes.

    Raises:
        UserError: there is no data set, or it does not fit the configuration.
    """

    def __init__(self, folder: str, config: DataConfig, *, seed: int, batch_size: int) -> None:
        self.manifest, self.digest = read_manifest(folder)
        check_fits(self.manifest, config, folder)
        self.folder, self.config = folder, config
        self.seed, self.batch_size = seed, batch_size
        sizes = [shard.samples for shard in self.manifest.shards]
        self.order = EpochOrder(sizes, seed=seed, lanes=config.lanes)
        self.damage = DamageTally(folder, self.manifest, config.max_damaged_fraction)
        """Of what was delivered, not of what workers have read ahead."""

    @property
    def samples_an_epoch(self) -> int:
        return self.order.samples

    def batches(self, start: int = 0) -> Generator[ClipBatch, None, None]:
        """Endless batches from the `start`-th sample on, a multiple of the batch size.

        Close it to end its loader workers. What is damaged is counted in `self.damage` and named
        in one line a shard.

        Raises:
            UserError: more is damaged than `data.max_damaged_fraction`, or a shard can't be read.
            StorageError: object storage failed for longer than `storage.retry_seconds`.
        """
        assert start % self.batch_size == 0
        workers = self.config.num_workers
        if workers == 0:
            for part in _LaneBatches(self, start).parts():
                self._count(part.damage)
                yield ClipBatch(part.clips.permute(0, 4, 1, 2, 3), tuple(part.places))
            return
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
                parts = [_unwrap(next(loader)) for _ in range(workers)]  # one of each, in turn
                self._count(damage for part in parts for damage in part.damage)
                places = [place for part in parts for place in part.places]
                in_order = torch.tensor(places).argsort()
                clips = torch.cat([part.clips for part in parts])[in_order]
                yield ClipBatch(clips.permute(0, 4, 1, 2, 3), tuple(sorted(places)))
        finally:
            del loader  # workers that it can still reach leave by themselves
            end_workers()
            atexit.unregister(end_workers)

    def reference_clips(self, count: int) -> Tensor:
        """The same real clips at every call, spread evenly over the data set: uint8
        (count, 3, T, H, W). With fewer samples than `count`, samples come again at other starts."""
        reader = self.reader(capacity=1)
        chosen = sorted((index * self.samples_an_epoch) // count for index in range(count))
        ends = np.cumsum(self.order.shard_sizes)
        clips = []
        for index, number in enumerate(chosen):
            shard = int(np.searchsorted(ends, number, side="right"))
            place = number - int(ends[shard]) + self.order.shard_sizes[shard]
            clips.append(reader.clip(REFERENCE_EPOCH + index, (shard, place)))
        self._count(reader.take_damage())
        return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)

    def reader(self, capacity: int) -> ClipReader:
        """Reads clips in this process, with at most so many shards in memory."""
        return ClipReader(
            self.folder,
            self.manifest,
            self.config,
            seed=self.seed,
            shards_from=self.order.shards_from,
            capacity=capacity,
        )

    def _count(self, damages: Iterable[ShardDamage]) -> None:
        for line in self.damage.add(damages):
            tqdm.write(line)
        self.damage.check()


class LanePart(NamedTuple):
    """What one worker has of a batch."""

    places: list[int]
    clips: Tensor
    """uint8 (b, T, H, W, 3)."""
    damage: tuple[ShardDamage, ...]
    """Found while these clips were read, and not told before by this worker."""


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
            yield from self.parts()
        except DistganError as error:
            yield error

    def parts(self) -> Iterator[LanePart]:
        """The same, raising its errors."""
        stream, info = self.stream, get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        lanes = range(worker, stream.config.lanes, workers)
        places = [p for p in range(stream.batch_size) if p % stream.config.lanes in lanes]
        reader = stream.reader(capacity=len(lanes) + 1)
        position = self.start
        while True:
            samples = [stream.order.sample(position + place) for place in places]
            clips = np.stack([reader.clip(epoch, sample) for epoch, sample in samples])
            yield LanePart(places, torch.from_numpy(clips), reader.take_damage())
            position += stream.batch_size


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
