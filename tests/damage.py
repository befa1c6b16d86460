"""Damage to files, which must be found before a byte of them is used."""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def flip_bit(file: Path, place: int, bit: int = 0) -> None:
    """Changes one bit of the byte at `place`; from the end where that is negative."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


@dataclass(frozen=True)
class Corruption:
    """What was done to a data set, and what must follow from it."""

    what: str
    shards: tuple[int, ...]
    """Those whose bytes are wrong."""
    samples: frozenset[tuple[int, int]]
    """(shard, index) of clips that may be lost, and no others."""
    all_are_lost: bool
    """Whether each of `samples` is lost; a bit of a header may be one that nobody reads."""


KINDS = ("header", "payload", "anywhere", "truncated", "swapped", "missing")


def corrupt(files: Sequence[Path], kind: str, rng: np.random.Generator) -> Corruption:
    """Damages one or two whole shards in one random way of `KINDS`."""
    shard = int(rng.integers(len(files)))
    file = files[shard]
    clips = clip_places(file)
    everything = frozenset((shard, index) for index in range(len(clips)))
    if kind == "missing":
        file.unlink()
        return Corruption(kind, (shard,), everything, True)
    if kind == "swapped":
        other = int((shard + rng.integers(1, len(files))) % len(files))
        data = file.read_bytes()
        file.write_bytes(files[other].read_bytes())
        files[other].write_bytes(data)
        everything |= {(other, index) for index in range(len(clip_places(file)))}
        return Corruption(kind, tuple(sorted((shard, other))), everything, True)
    if kind == "truncated":
        length = int(rng.integers(file.stat().st_size))
        file.write_bytes(file.read_bytes()[:length])
        cut = frozenset((shard, i) for i, (_, _, end) in enumerate(clips) if end > length)
        return Corruption(f"truncated to {length}", (shard,), cut, True)
    number = int(rng.integers(len(clips)))
    header, payload, end = clips[number]
    first, past = {
        "header": (header, header + 512),
        "payload": (payload, end),
        "anywhere": (0, file.stat().st_size),
    }[kind]
    place, bit = int(rng.integers(first, past)), int(rng.integers(8))
    flip_bit(file, place, bit)
    hit = {(shard, i) for i, (start, _, end) in enumerate(clips) if start <= place < end}
    in_payload = any(start <= place < end for _, start, end in clips)
    what = f"bit {bit} of byte {place} flipped"
    return Corruption(what, (shard,), frozenset(hit), in_payload or not hit)


def clip_places(shard: Path) -> list[tuple[int, int, int]]:
    """Of each clip in a whole shard: where its header, its payload, and what follows begin."""
    with tarfile.open(shard) as tar:
        return [
            (member.offset, member.offset_data, member.offset_data + member.size)
            for member in tar
            if member.name.endswith((".npy", ".mp4"))
        ]
