"""Training clips by sample: reads shards, decodes clips, and replaces the damaged ones.

Which clip replaces a damaged one is drawn from (seed, epoch, sample), so it is the same whoever
reads, and no other sample changes its place.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distgan.config import DataConfig
from distgan.data.clip_formats import decode
from distgan.data.damage import ShardDamage
from distgan.data.manifest import Manifest
from distgan.data.order import EpochOrder, Sample
from distgan.data.prefetch import ShardPrefetcher
from distgan.data.shard_cache import ShardCache
from distgan.data.shard_reader import Shard, read_shard
from distgan.errors import UserError
from distgan.seeding import numpy_generator


class ClipReader:
    """Holds a few whole shards in memory, for one process.

    Args:
        order: of the samples; its seed is that of each clip's start and stride as well.
        capacity: shards held at a time, beside those in flight.
    """

    def __init__(
        self,
        folder: str,
        manifest: Manifest,
        config: DataConfig,
        order: EpochOrder,
        *,
        capacity: int,
    ) -> None:
        self.folder, self.manifest, self.config, self.order = folder, manifest, config, order
        self.seed, self.capacity = order.seed, capacity
        self._cache = ShardCache(config) if config.cache_dir else None
        self._ahead: ShardPrefetcher | None = None
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._lost: dict[int, Shard] = {}  # nothing of them is left, so they take no room
        self._reported: set[int | Sample] = set()
        self._found: list[ShardDamage] = []

    @contextlib.contextmanager
    def reading_ahead(self, position: int, lanes: Sequence[int]) -> Iterator[ShardPrefetcher]:
        """While inside, shards that these lanes come to are read in the background."""
        self._ahead = ShardPrefetcher(
            self._read,
            self.order.visits(position, lanes),
            lambda shard: shard in self._shards or shard in self._lost,
            self.config.shards_in_flight,
        )
        try:
            yield self._ahead
        finally:
            self._ahead.close()
            self._ahead = None

    def clip(self, epoch: int, sample: Sample, out: NDArray[np.uint8]) -> None:
        """One clip into `out`, (T, H, W, 3), start and stride drawn from (seed, epoch, sample).

        Raises:
            UserError: nothing in the data set is left to replace a damaged sample with.
            StorageError: object storage failed for longer than `storage.retry_seconds`.
        """
        frames = self._frames(epoch, sample)
        if not self._decoded(sample, frames, out):
            self._replace(epoch, sample, frames, out)

    def _frames(self, epoch: int, sample: Sample) -> range:
        """Those of the stored clip that training takes."""
        length, stride = self.config.clip_frames, self.config.frame_stride
        stored = self.manifest.clip.stored_frames
        if stored == (length - 1) * stride + 1 and not self.config.random_stride:
            return range(0, stored, stride)  # no choice, and drawing takes longer than reading
        rng = numpy_generator(self.seed, f"clip/{sample[0]}", epoch, sample[1])
        if self.config.random_stride:
            stride = int(rng.integers(1, stride + 1))
        first = int(rng.integers(stored - (length - 1) * stride))
        return range(first, first + length * stride, stride)

    def take_damage(self) -> tuple[ShardDamage, ...]:
        """What this reader found damaged since the last call, nothing of it twice."""
        found, self._found = tuple(self._found), []
        return found

    def _replace(
        self, epoch: int, sample: Sample, frames: Sequence[int], out: NDArray[np.uint8]
    ) -> None:
        """Puts there the same frames of another sample: of the same shard or, if that has none
        left, of the next one in the epoch's order, which the lane reads next anyway."""
        rng = numpy_generator(self.seed, f"replacement/{sample[0]}", epoch, sample[1])
        for shard in self.order.shards_from(epoch, sample[0]):
            for index in rng.permutation(self.manifest.shards[shard].samples):
                # Whether it was met before must not matter: damage is judged anew here.
                if self._decoded((shard, int(index)), frames, out):
                    return
        raise UserError(
            f"every sample of the data set {self.folder} is damaged; copy it again from where it "
            "was prepared, or prepare it again into an empty folder"
        )

    def _decoded(self, sample: Sample, frames: Sequence[int], out: NDArray[np.uint8]) -> bool:
        """Puts the frames of a sample into `out`; False if it is damaged, which is noted."""
        shard, index = sample
        data = self._shard(shard).clips[index]
        if data is None:
            return False
        try:
            decode(data, self.manifest.clip.clip_format, frames, out)
        except ValueError:
            # Equal words for every such clip: which one is met first depends on who reads.
            what = "holds clips that do not decode to what the manifest says"
            self._report(sample, ShardDamage(shard, what, ((index, "undecodable"),)))
            return False
        return True

    def _shard(self, index: int) -> Shard:
        if index in self._lost:
            return self._lost[index]
        if index not in self._shards:
            while len(self._shards) >= self.capacity:
                oldest, contents = self._shards.popitem(last=False)
                if self._ahead:
                    self._ahead.keep(oldest, contents)
            shard = self._ahead.take(index) if self._ahead else self._read(index)
            if shard.damage is not None:
                self._report(index, shard.damage)
            if all(clip is None for clip in shard.clips):
                self._lost[index] = shard
            else:
                self._shards[index] = shard
            if self._ahead:
                self._ahead.look_ahead()
            return shard
        self._shards.move_to_end(index)
        return self._shards[index]

    def _read(self, index: int) -> Shard:
        return read_shard(self.folder, self.manifest, index, self._cache)

    def _report(self, what: int | Sample, damage: ShardDamage) -> None:
        if what not in self._reported:
            self._reported.add(what)
            self._found.append(damage)
