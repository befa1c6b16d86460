"""Reading without decoding: our stream, a bare tar loop with and without digests, and webdataset.

    python -m benchmarks reading [--rounds 7] [--shards 12]

Local shards of npy clips, in the page cache; one process each. Our stream checks every shard's
sha256, reads ahead in threads, and hands over shuffled batches of tensors; the others hand over the
members' bytes, one after the other. webdataset checks nothing.
"""

import argparse
import hashlib
import itertools
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import webdataset

from benchmarks._pairs import Clock, Cost, measured, rates, speed_ratio
from benchmarks._shards import make_shards, one_lane
from distgan.data.manifest import Manifest
from distgan.data.stream import ClipStream

RESOLUTION, CLIPS = 64, 240
BATCH = 16


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks reading", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shards", type=int, default=12)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_shards(
            folder, clip_format="npy", resolution=RESOLUTION, shards=args.shards, clips=CLIPS
        )
        gigabytes = sum(shard.bytes for shard in manifest.shards) / 1e9
        stream = ClipStream(name, one_lane(RESOLUTION, num_workers=0), seed=0, batch_size=BATCH)
        batches = stream.batches()

        def ours() -> Cost:
            clock = Clock()
            for _ in itertools.islice(batches, manifest.samples // BATCH):
                pass
            return clock.cost(gigabytes)

        def bare(*, checked: bool) -> Cost:
            clock = Clock()
            assert sum(1 for _ in tar_loop(folder, manifest, checked=checked)) == manifest.samples
            return clock.cost(gigabytes)

        def stock() -> Cost:
            clock = Clock()
            urls = [str(folder / shard.name) for shard in manifest.shards]
            data = webdataset.WebDataset(urls, shardshuffle=False)
            assert sum(1 for _ in data) == manifest.samples
            return clock.cost(gigabytes)

        candidates = {
            "our stream": ours,
            "tar loop, same digest": lambda: bare(checked=True),
            "tar loop, no digest": lambda: bare(checked=False),
            "webdataset": stock,
        }
        costs = measured(candidates, args.rounds)
        batches.close()
    print("| reader | GB/s | GB a CPU second | our speed over its | ours, by CPU time |")
    print("|---|---|---|---|---|")
    for other in candidates:
        by_wall = speed_ratio(costs, "our stream", other)
        by_cpu = speed_ratio(costs, "our stream", other, "cpu_s")
        print(f"| {other} | {rates(costs, other)} | {by_wall} | {by_cpu} |")


def tar_loop(folder: Path, manifest: Manifest, *, checked: bool) -> Iterator[bytes]:
    """What one would write by hand: every clip's bytes, in the order of the shards."""
    return itertools.chain.from_iterable(
        _members(folder, manifest, index, checked=checked) for index in range(len(manifest.shards))
    )


def _members(folder: Path, manifest: Manifest, index: int, *, checked: bool) -> list[bytes]:
    entry = manifest.shards[index]
    with (folder / entry.name).open("rb") as file:
        if checked:
            assert hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
            file.seek(0)
        clips: list[bytes] = []
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                data = content.read()
                if member.name.endswith(".npy"):
                    clips.append(data)
        return clips
