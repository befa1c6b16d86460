"""How long a step waits for a checkpoint that is written in the background.

The state of a network of at least a gigabyte (with Adam's) is saved again and again, in turn with a
plain copy of the same tensors; the writing itself is waited for between rounds, and its time told.
"""

import argparse
import tempfile
import time

import torch
from torch import Tensor

from benchmarks._pairs import spread
from distgan.checkpoint import whole
from distgan.saving import Saver
from distgan.team import Alone


def main(argv: list[str]) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks saving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gigabytes", type=float, default=1.1)
    parsed = parser.parse_args(argv)
    count = int(parsed.gigabytes * 1e9 / 4 / 100)
    tensors = {f"generator/{n}": torch.randn(count) for n in range(100)}
    copies, stalls, writes = [], [], []
    with tempfile.TemporaryDirectory(prefix="distgan-benchmark-") as folder:
        saver = Saver(folder, 2, Alone())
        for step in range(parsed.rounds + 1):
            copied, stalled, written = _round(saver, tensors, step)
            if step:  # the first one warms up
                copies.append(copied)
                stalls.append(stalled)
                writes.append(written)
    ratios = [stall / copy for stall, copy in zip(stalls, copies, strict=True)]
    print(f"{parsed.gigabytes} GB, {parsed.rounds} rounds, median (quartiles)\n")
    print("| copy, s | the step waits, s | waits over copies | written in, s |\n|---|---|---|---|")
    print(f"| {spread(copies)} | {spread(stalls)} | {spread(ratios)} | {spread(writes)} |")


def _round(saver: Saver, tensors: dict[str, Tensor], step: int) -> tuple[float, float, float]:
    """Seconds of a plain copy, of the call that begins to save, and until it is committed."""
    start = time.perf_counter()
    copy = [tensor.to("cpu", copy=True) for tensor in tensors.values()]
    copied = time.perf_counter() - start
    del copy
    start = time.perf_counter()
    saver.begin(step, whole(tensors), {"step": step})
    stalled = time.perf_counter() - start
    saver.finish()
    return copied, stalled, time.perf_counter() - start
