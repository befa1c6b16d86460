"""Which sample stands where in the endless sequence of training clips.

The j-th sample belongs to epoch j // N and is read by lane j mod L. Within an epoch the shards are
shuffled and laid end to end in a row, each lane takes one contiguous piece of it, and samples are
shuffled inside each shard. Nothing but the seed, the shards' sizes and the lanes decides; memory
grows with the number of shards, not of samples.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distgan.seeding import numpy_generator

Sample = tuple[int, int]  # (shard, index in the shard)

_EPOCHS_KEPT = 3  # lanes that stand at an epoch's end and the shards read ahead need neighbours


class Visit(NamedTuple):
    """A lane comes to a shard."""

    position: int
    """Of the first sample that the lane takes from it."""
    shard: int


class _Row(NamedTuple):
    """An epoch's shards, end to end."""

    shards: NDArray[np.int64]
    ends: NDArray[np.int64]
    """Samples up to the end of each."""


class EpochOrder:
    """Which sample the j-th place of the endless sequence holds."""

    def __init__(self, shard_sizes: Sequence[int], *, seed: int, lanes: int) -> None:
        self.shard_sizes = tuple(shard_sizes)
        self.samples = sum(shard_sizes)
        self.seed, self.lanes = seed, lanes
        self._rows: OrderedDict[int, _Row] = OrderedDict()
        self._shuffles: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def sample(self, position: int) -> tuple[int, Sample]:
        """(epoch, sample) of the `position`-th sample since the start of training."""
        epoch, place, _ = self._locate(position)
        row = self._row(epoch)
        slot = int(np.searchsorted(row.ends, place, side="right"))
        shard = int(row.shards[slot])
        start = int(row.ends[slot]) - self.shard_sizes[shard]
        return epoch, (shard, int(self._shuffle(epoch, shard)[place - start]))

    def visits(self, position: int, lanes: Iterable[int]) -> Iterator[Visit]:
        """The shards that some lanes come to from `position` on, soonest first, without end."""
        starts = (position + (lane - position) % self.lanes for lane in lanes)
        return heapq.merge(*(self._visits_of_lane(start) for start in starts))

    def shards_from(self, epoch: int, shard: int) -> list[int]:
        """All shards in the order of an epoch's row, from `shard` on and round to it."""
        order = [int(other) for other in self._row(epoch).shards]
        place = order.index(shard)
        return order[place:] + order[:place]

    def _visits_of_lane(self, position: int) -> Iterator[Visit]:
        while True:
            epoch, place, left_in_epoch = self._locate(position)
            row = self._row(epoch)
            slot = int(np.searchsorted(row.ends, place, side="right"))
            yield Visit(position, int(row.shards[slot]))
            left_in_shard = int(row.ends[slot]) - place
            position += min(left_in_shard, left_in_epoch) * self.lanes

    def _locate(self, position: int) -> tuple[int, int, int]:
        """(epoch, place in its row, samples that the lane has left in the epoch, with this one)."""
        epoch, within = divmod(position, self.samples)
        first = epoch * self.samples  # the epoch's first position belongs to lane first mod L
        lane = position % self.lanes
        offset = sum(self._lane_length(first, other) for other in range(lane))
        done = (within - (lane - first) % self.lanes) // self.lanes
        return epoch, offset + done, self._lane_length(first, lane) - done

    def _lane_length(self, first: int, lane: int) -> int:
        return (self.samples - (lane - first) % self.lanes + self.lanes - 1) // self.lanes

    def _row(self, epoch: int) -> _Row:
        if epoch not in self._rows:
            rng = numpy_generator(self.seed, "shard order", epoch)
            shards = rng.permutation(len(self.shard_sizes))
            self._rows[epoch] = _Row(shards, np.cumsum(np.asarray(self.shard_sizes)[shards]))
            if len(self._rows) > _EPOCHS_KEPT:
                self._rows.popitem(last=False)
        return self._rows[epoch]

    def _shuffle(self, epoch: int, shard: int) -> NDArray[np.int64]:
        key = (epoch, shard)
        if key not in self._shuffles:
            rng = numpy_generator(self.seed, "sample order", epoch, shard)
            self._shuffles[key] = rng.permutation(self.shard_sizes[shard])
            if len(self._shuffles) > 2 * self.lanes:
                self._shuffles.popitem(last=False)
        self._shuffles.move_to_end(key)
        return self._shuffles[key]
