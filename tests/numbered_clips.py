"""Data sets whose clips say in their pixels which one they are."""

import json
from pathlib import Path

import numpy as np

from distgan.config import DataConfig
from distgan.data.clip_formats import ClipFormat, encode
from distgan.data.manifest import ClipSpec, Manifest, ShardEntry, write_manifest
from distgan.data.shards import ShardWriter
from distgan.data.stream import ClipStream

SIZE, STORED = 8, 7
RED = {"npy": 1, "mp4": 12}
"""Of a clip, times its number: mp4 loses a little."""


def make_data(folder: Path, shard_sizes: list[int], clip_format: ClipFormat = "npy") -> str:
    """Clips whose red says their number, and whose green the number of the frame."""
    number, entries, red = 0, list[ShardEntry](), RED[clip_format]
    for size in shard_sizes:
        writer = ShardWriter(str(folder), clip_format, 1e12)
        writer.entries = list(entries)
        for _ in range(size):
            clip = np.zeros((STORED, SIZE, SIZE, 3), np.uint8)
            clip[..., 0], clip[..., 1] = number * red, np.arange(STORED)[:, None, None]
            facts = json.dumps({"number": number}).encode()
            writer.write(f"clip-{number:04d}", facts, encode(clip, 8, clip_format))
            number += 1
        writer.finish()
        entries = list(writer.entries)
    write_data_manifest(folder, entries, clip_format)
    return str(folder)


def write_data_manifest(
    folder: Path, entries: list[ShardEntry], clip_format: ClipFormat = "npy"
) -> None:
    spec = ClipSpec(resolution=SIZE, stored_frames=STORED, frame_rate_hz=8, clip_format=clip_format)
    write_manifest(
        str(folder),
        Manifest(clip=spec, shards=tuple(entries), prepare={}, counts={}, dropped={}),
    )


def open_stream(
    folder: str,
    *,
    lanes: int = 4,
    batch: int = 4,
    seed: int = 0,
    workers: int = 0,
    frames: int = 2,
    stride: int = 1,
    random_stride: bool = False,
    max_damaged: float = 0.001,
    rank: int = 0,
    ranks: int = 1,
    in_flight: int = 4,
) -> ClipStream:
    config = DataConfig(
        resolution=SIZE,
        clip_frames=frames,
        frame_stride=stride,
        random_stride=random_stride,
        lanes=lanes,
        num_workers=workers,
        max_damaged_fraction=max_damaged,
        shards_in_flight=in_flight,
    )
    return ClipStream(folder, config, seed=seed, batch_size=batch, rank=rank, ranks=ranks)
