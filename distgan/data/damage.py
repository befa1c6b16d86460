"""Damage to a data set: what readers find, counted by shard and cause, and limited.

What is damaged at a position of the stream follows from the files alone, so equal runs count alike,
whoever reads. An outage of the storage is no damage: it is a `StorageError`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distgan.data.manifest import Manifest
from distgan.errors import UserError

Cause = Literal[
    "shard_missing", "shard_truncated", "shard_swapped", "sample_missing", "crc32", "undecodable"
]

EXPLANATIONS: Mapping[Cause, str] = {
    "shard_missing": "its shard is missing",
    "shard_truncated": "its shard ends before it",
    "shard_swapped": "its shard's place is taken by another",
    "sample_missing": "the clip is not found in its shard (a damaged tar header, say)",
    "crc32": "the clip's crc32 differs from the manifest's",
    "undecodable": "the clip does not decode to what the manifest says",
}

OUTSIDE_CLIPS = "outside_clips"
"""Counts shards whose bytes are wrong although every clip in them is right."""

_NAMED_SHARDS = 5  # in a message; the others are counted


@dataclass(frozen=True)
class ShardDamage:
    """What was found wrong with one shard."""

    shard: int
    problem: str
    """In words that follow the shard's name, such as `is missing`."""
    samples: tuple[tuple[int, Cause], ...]
    """Damaged samples: (index in the shard, cause)."""


class DamageTally:
    """Distinct damaged samples and shards of a data set, over all readers and starts of a run."""

    def __init__(self, folder: str, manifest: Manifest, max_fraction: float) -> None:
        """`max_fraction`: damaged samples that are tolerated, as a share of all."""
        self.folder, self.manifest, self.max_fraction = folder, manifest, max_fraction
        self._problems: dict[int, str] = {}
        self._samples: dict[int, dict[int, Cause]] = {}

    @property
    def num_samples(self) -> int:
        """Distinct damaged samples."""
        return sum(len(samples) for samples in self._samples.values())

    @property
    def num_shards(self) -> int:
        """Distinct damaged shards, also those whose clips are all right."""
        return len(self._problems)

    def add(self, damages: Iterable[ShardDamage]) -> list[str]:
        """Counts what was found; returns a line for each shard that was not known as damaged."""
        new: list[int] = []
        for damage in damages:
            if damage.shard not in self._problems:
                self._problems[damage.shard] = damage.problem
                self._samples[damage.shard] = {}
                new.append(damage.shard)
            self._samples[damage.shard].update(damage.samples)
        return [f"damaged data: {self._describe(shard)}" for shard in new]

    def merge(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Takes in what tallies of other ranks have counted, each given by its `state`."""
        for state in states:
            other = DamageTally(self.folder, self.manifest, self.max_fraction)
            other.load_state(state)
            self._problems = other._problems | self._problems
            for shard, samples in other._samples.items():
                self._samples.setdefault(shard, {}).update(samples)

    def check(self) -> None:
        """Raises `UserError`, naming shards, causes and the remedy, if there is too much damage."""
        damaged, total = self.num_samples, self.manifest.samples
        if damaged <= self.max_fraction * total:
            return
        raise UserError(
            f"{damaged} of {total} samples of the data set {self.folder} are damaged, more than "
            f"data.max_damaged_fraction={self.max_fraction:g} allows: {self.summary()}; copy these "
            "shards again from where they were prepared, or prepare the data set again into an "
            "empty folder, or raise data.max_damaged_fraction "
            f"(`launch.py data verify --data {self.folder}` lists all that is wrong)"
        )

    def summary(self) -> str:
        """The damaged shards, at most a few by name, with their causes; empty if there are none."""
        shards = sorted(self._problems, key=lambda shard: (-len(self._samples[shard]), shard))
        parts = [self._describe(shard) for shard in shards[:_NAMED_SHARDS]]
        if len(shards) > _NAMED_SHARDS:
            parts.append(f"and {len(shards) - _NAMED_SHARDS} more shards")
        return "; ".join(parts)

    def metrics(self) -> dict[str, float]:
        """`data/damaged_samples`, `data/damaged_shards`, and by cause `data/damaged/CAUSE`."""
        causes: Counter[str] = Counter()
        for samples in self._samples.values():
            causes.update(samples.values() if samples else [OUTSIDE_CLIPS])
        counts = {"data/damaged_samples": self.num_samples, "data/damaged_shards": self.num_shards}
        counts |= {f"data/damaged/{cause}": number for cause, number in sorted(causes.items())}
        return {tag: float(number) for tag, number in counts.items()}

    def state(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""
        return {
            str(shard): {
                "problem": self._problems[shard],
                "samples": {str(index): cause for index, cause in sorted(samples.items())},
            }
            for shard, samples in sorted(self._samples.items())
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what an earlier start of the run had found."""
        self._problems = {int(shard): entry["problem"] for shard, entry in state.items()}
        self._samples = {
            int(shard): {int(index): cause for index, cause in entry["samples"].items()}
            for shard, entry in state.items()
        }

    def _describe(self, shard: int) -> str:
        entry, samples = self.manifest.shards[shard], self._samples[shard]
        causes = ", ".join(sorted(set(samples.values())))
        hurt = f"{len(samples)} of {entry.samples} samples damaged ({causes})"
        return f"{entry.name} {self._problems[shard]}: {hurt if samples else 'all clips are right'}"
