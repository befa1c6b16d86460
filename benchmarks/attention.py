"""Where the plain matrix products beat the fused kernel, and the other way round.

    python -m benchmarks attention

Forward and backward of multi-head attention on this machine's device, 16 clips, 2 heads of 32.
`distgan/attention.py` takes the plain path for bf16 on a CPU up to 512 tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from distgan.attention import reference_attention
from distgan.precision import pick_device

LENGTHS = (64, 128, 256, 512, 1024, 2048)


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(prog="python -m benchmarks attention", description=__doc__).parse_args(
        argv
    )
    device = pick_device("auto")
    print("| tokens | precision | fused ms | plain ms | plain / fused |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for length in LENGTHS:
            q, k, v = (
                torch.randn(16, 2, length, 32, device=device, dtype=dtype, requires_grad=True)
                for _ in range(3)
            )
            times: dict[str, list[float]] = {"fused": [], "plain": []}
            for _ in range(7):  # interleaved
                times["fused"].append(_ms(F.scaled_dot_product_attention, q, k, v))
                times["plain"].append(_ms(reference_attention, q, k, v))
            fused, plain = (statistics.median(times[name][1:]) for name in ("fused", "plain"))
            name = str(dtype).removeprefix("torch.")
            print(f"| {length} | {name} | {fused:.2f} | {plain:.2f} | {plain / fused:.2f} |")


def _ms(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> float:
    if q.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    attention(q, k, v).sum().backward()
    if q.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000
