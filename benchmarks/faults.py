"""What random faults cost: reading with 5% of all requests failing, against reading without any.

    python -m benchmarks faults [--rounds 7] [--share 0.05] [--shards 16] [--in-flight 8]

Two servers of 100 ms latency and 90 MB/s a connection, 8 streams; the faults are SlowDown,
InternalError, a reset and half a body in the middle, and silence, in turn.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks._object_server import object_server
from benchmarks._pairs import Cost, measured, rates, speed_ratio
from benchmarks.object_reading import LATENCY_MS, RATE_MB, make_bucket, read_shards, use_server
from distgan import storage


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--in-flight", type=int, default=8, help="shards read ahead at a time")
    args = parser.parse_args(argv)
    os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any")
    shape = {"latency_ms": LATENCY_MS, "rate_mb": RATE_MB}
    second_requests = 0
    with tempfile.TemporaryDirectory() as name:
        manifest = make_bucket(Path(name, "bucket"), args.shards, args.in_flight)

        def reading(url: str) -> Callable[[], Cost]:
            def run() -> Cost:
                nonlocal second_requests
                use_server(url, 8)
                cost = read_shards(manifest, args.in_flight)
                second_requests += storage.second_requests()
                return cost

            return run

        with (
            object_server(name, **shape) as clean,
            object_server(name, faults=args.share, **shape) as faulty,
        ):
            candidates = {"faults": reading(faulty), "clean": reading(clean)}
            costs = measured(candidates, args.rounds)
    print("| server | GB/s | GB a CPU second |\n|---|---|---|")
    for key in candidates:
        print(f"| {key} | {rates(costs, key)} |")
    print(f"\nspeed with faults over clean: {speed_ratio(costs, 'faults', 'clean')}, "
          f"{args.rounds} pairs; {second_requests} second requests")  # fmt: skip
