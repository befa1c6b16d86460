"""The deterministic stream of training clips, for one rank of any number.

The order is a function of (seed, epoch) alone; see `order`. A rank owns whole lanes, its loader
workers share them, and each clip knows its place in the global batch: so the number of ranks and
workers changes nothing, a lane reads about 1/L of the shards, every clip comes once an epoch,
batches run on over an epoch's end, and the whole position is one number: samples delivered to all
ranks. A damaged sample is replaced in its place and counted; see `clip_reader` and `damage`.
"""

import contextlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distgan.buffers import new_array
from distgan.config import DataConfig
from distgan.data.clip_reader import ClipReader
from distgan.data.damage import DamageTally, ShardDamage
from distgan.data.lane_workers import LanePart, parts_here, parts_of_workers
from distgan.data.manifest import Manifest, read_manifest
from distgan.data.order import EpochOrder
from distgan.errors import UserError

REFERENCE_EPOCH = 1_000_000_000  # draws starts and strides of reference clips; no run gets there
REFERENCE_SEED = 0  # so that runs of different seeds are measured against the same clips


@dataclass(frozen=True)
class ClipBatch:
    clips: Tensor
    """uint8 (B / ranks, 3, T, H, W), channels last in memory."""
    places: tuple[int, ...]
    """Each clip's place in the global batch, ascending."""


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
        workers = min(self.config.num_workers, len(self.lanes))
        parts = parts_of_workers(self, start, workers) if workers else parts_here(self, start)
        with contextlib.closing(parts):
            for of_batch in parts:
                self._count(damage for part in of_batch for damage in part.damage)
                if workers or pin_memory:
                    yield _joined(of_batch, pin_memory)
                else:
                    yield _batch(of_batch[0].clips, of_batch[0].places)

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


def _joined(parts: Sequence[LanePart], pin_memory: bool) -> ClipBatch:
    """A copy of all parts as one batch, in the order of their places."""
    places = sorted(place for part in parts for place in part.places)
    shape = (len(places), *parts[0].clips.shape[1:])
    if pin_memory:
        clips = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    else:
        clips = torch.from_numpy(new_array(shape))
    row = {place: index for index, place in enumerate(places)}
    # By NumPy: PyTorch copies with all threads, which then wait for the cores that workers hold.
    pixels = clips.numpy()
    for part in parts:
        for place, clip in zip(part.places, part.clips.numpy(), strict=True):
            np.copyto(pixels[row[place]], clip)  # one indexed assignment goes byte by byte
    return _batch(clips, places)


def _batch(clips_BTHWC: Tensor, places: Sequence[int]) -> ClipBatch:
    return ClipBatch(clips_BTHWC.permute(0, 4, 1, 2, 3), tuple(places))


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
