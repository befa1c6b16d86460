"""Data sets of random clips for the benchmarks of reading."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks._clips import runs_of_frames
from distgan.config import DataConfig
from distgan.data.clip_formats import ClipFormat, encode
from distgan.data.formatting import Formatter
from distgan.data.manifest import ClipSpec, Manifest, write_manifest
from distgan.data.shards import ShardWriter

FRAMES = 16


def make_shards(
    folder: Path, *, clip_format: ClipFormat, resolution: int, shards: int, clips: int
) -> Manifest:
    """So many shards of so many clips; npy clips are noise, mp4 ones a synthetic video."""
    writer = ShardWriter(str(folder), clip_format, 1e12)
    rng = np.random.default_rng(0)
    coded = _coded_videos(resolution) if clip_format == "mp4" else []
    for shard in range(shards):
        for place in range(clips):
            if clip_format == "npy":
                pixels = rng.integers(0, 256, (FRAMES, resolution, resolution, 3), np.uint8)
                data = encode(pixels, 8, "npy")
            else:
                data = coded[place % len(coded)]
            writer.write(f"clip-{shard:03d}-{place:05d}", b"{}", data)
        writer.finish()
    spec = ClipSpec(
        resolution=resolution, stored_frames=FRAMES, frame_rate_hz=8, clip_format=clip_format
    )
    manifest = Manifest(clip=spec, shards=tuple(writer.entries), prepare={}, counts={}, dropped={})
    write_manifest(str(folder), manifest)
    return manifest


def _coded_videos(resolution: int) -> list[bytes]:
    formatter = Formatter(resolution, "crop", Fraction(1))
    runs = runs_of_frames("", FRAMES, 1)
    return [encode(np.stack([formatter(image) for image in run]), 8, "mp4") for run in runs]


def one_lane(resolution: int, **values: int) -> DataConfig:
    """Whole clips, shard after shard."""
    return DataConfig(resolution=resolution, clip_frames=FRAMES, lanes=1, **values)
