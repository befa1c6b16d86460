"""One rank that reads its part of a stream and writes down what it got; run as a program.

Each batch adds a line a clip, `GLOBAL_POSITION CLIP FIRST_FRAME`, and then one with its number, so
that whoever kills the program knows what was whole.
"""

import argparse
import contextlib
import itertools
from pathlib import Path

from distgan.data.stream import ClipBatch
from tests.numbered_clips import open_stream


def lines_of(batch: ClipBatch, position: int) -> list[str]:
    """What a batch, whose first clip has this position in the endless sequence, has brought."""
    return [
        f"{position + place:06d} {int(clip[0, 0, 0, 0]):03d} {int(clip[1, 0, 0, 0])}"
        for place, clip in zip(batch.places, batch.clips, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("folder", "output"):
        parser.add_argument(name)
    for name in ("rank", "ranks", "workers", "lanes", "batch", "start", "batches"):
        parser.add_argument(name, type=int)
    args = parser.parse_args()
    stream = open_stream(
        args.folder, lanes=args.lanes, batch=args.batch, workers=args.workers,
        rank=args.rank, ranks=args.ranks,
    )  # fmt: skip
    with (
        Path(f"{args.output}.{args.rank}").open("w") as order,
        contextlib.closing(stream.batches(args.start)) as batches,
    ):
        for number, batch in enumerate(itertools.islice(batches, args.batches)):
            print(*lines_of(batch, args.start + number * args.batch), sep="\n", file=order)
            print(f"batch {number}", file=order, flush=True)


if __name__ == "__main__":
    main()
