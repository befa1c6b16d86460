"""Reading from an object store of 100 ms latency and 90 MB/s a connection: 1, 4 and 8 streams.

    python -m benchmarks object_reading [--rounds 5] [--shards 10]

The server (`benchmarks/_object_server.py`) is a process of its own on this machine and costs CPU
as well; `plain sockets` are threads that only receive: the most that it gives here. What the shape
allows a stream is a range's bytes over latency + bytes / rate. Our stream runs in this process,
with `storage.max_concurrency` as the number of streams, and checks every digest.
"""

import argparse
import itertools
import os
import socket
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks._object_server import object_server
from benchmarks._pairs import Clock, Cost, measured, spread
from benchmarks._shards import make_shards, one_lane
from distgan import storage
from distgan.config import StorageConfig
from distgan.data.manifest import Manifest
from distgan.data.stream import ClipStream

LATENCY_MS, RATE_MB = 100.0, 90.0
RESOLUTION, CLIPS = 128, 81  # shards of four ranges of 16 MB
STREAMS = (1, 4, 8)
IN_FLIGHT = 4


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks object_reading")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=int, default=10)
    args = parser.parse_args(argv)
    os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any")
    with tempfile.TemporaryDirectory() as name:
        manifest = make_bucket(Path(name, "bucket"), args.shards)
        with object_server(name, latency_ms=LATENCY_MS, rate_mb=RATE_MB) as url:
            costs = measured(
                {f"ours, {n}": _ours(url, manifest, n) for n in STREAMS}
                | {f"plain sockets, {n}": _plain(url, manifest, n) for n in STREAMS},
                args.rounds,
            )
    part = StorageConfig().part_megabytes
    allowed = part / (LATENCY_MS / 1e3 + part / RATE_MB)
    print("| streams | MB/s | of what the shape allows | over one stream | CPU s a GB |")
    print("|---|---|---|---|---|")
    for name, found in costs.items():
        one = costs[name.partition(",")[0] + ", 1"]
        speeds = [1e3 / cost.wall_s for cost in found]
        count = int(name.split()[-1])
        over_one = [b.wall_s / a.wall_s for a, b in zip(found, one, strict=True)]
        print(
            f"| {name} | {statistics.median(speeds):.0f} | "
            f"{spread([speed / (count * allowed) for speed in speeds])} | {spread(over_one)} | "
            f"{statistics.median(cost.cpu_s for cost in found):.2f} |"
        )


def make_bucket(folder: Path, shards: int, in_flight: int = IN_FLIGHT) -> Manifest:
    """So many to measure with, and those that come before and behind them."""
    shards += 3 * in_flight
    return make_shards(folder, clip_format="npy", resolution=RESOLUTION, shards=shards, clips=CLIPS)


def _ours(url: str, manifest: Manifest, streams: int) -> Callable[[], Cost]:
    def run() -> Cost:
        use_server(url, streams)
        return read_shards(manifest)

    return run


def use_server(url: str, streams: int) -> None:
    """This process reads from there, without memory of what it read before."""
    storage.configure(StorageConfig())
    storage.configure(
        StorageConfig(
            endpoint_url=url, region="any", addressing="path", checksums="when_required",
            max_concurrency=streams,
        )
    )  # fmt: skip


def read_shards(manifest: Manifest, in_flight: int = IN_FLIGHT) -> Cost:
    """Of a gigabyte, in the middle of an epoch: before, several shards start at the same time, and
    behind it those that come again soon are not read twice."""
    count = len(manifest.shards) - 3 * in_flight
    config = one_lane(RESOLUTION, num_workers=0, shards_in_flight=in_flight)
    stream = ClipStream("s3://bucket", config, seed=0, batch_size=CLIPS)
    batches = stream.batches()
    for _ in itertools.islice(batches, 2 * in_flight):
        pass
    clock = Clock()
    for _ in itertools.islice(batches, count):
        pass
    cost = clock.cost(count * manifest.shards[0].bytes / 1e9)
    batches.close()
    return cost


def _plain(url: str, manifest: Manifest, streams: int) -> Callable[[], Cost]:
    step, size = int(StorageConfig().part_megabytes * 1e6), manifest.shards[0].bytes
    shards = manifest.shards[3 * IN_FLIGHT :]
    ranges = [
        (shard.name, start, min(start + step, size))
        for shard in shards
        for start in range(0, size, step)
    ]

    def receive(own: list[tuple[str, int, int]]) -> None:
        address, buffer = urlsplit(url), bytearray(1 << 18)
        with socket.create_connection((address.hostname, address.port)) as server:
            for name, start, end in own:
                head = f"GET /bucket/{name} HTTP/1.1\r\nRange: bytes={start}-{end - 1}\r\n\r\n"
                server.sendall(head.encode())
                line = b""
                while b"\r\n\r\n" not in line:
                    line += server.recv(1)
                missing = end - start
                while missing:
                    missing -= server.recv_into(buffer, min(missing, len(buffer)))

    def run() -> Cost:
        clock = Clock()
        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(receive, [ranges[place::streams] for place in range(streams)]))
        return clock.cost(len(shards) * size / 1e9)

    return run
