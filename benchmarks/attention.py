"""Every kind of attention from 512 to 65,536 tokens, forward and backward: time and peak memory.

    python -m benchmarks attention                        all kinds and sizes that fit
    python -m benchmarks attention --tokens 4096 --kinds self window
    python -m benchmarks attention --short                plain against fused products, up to 2048

One clip, 4 heads of 32 (64 on a GPU), tokens on a grid of 8 frames; of a layer's work what differs
between kinds: from queries, keys and values to mixed values, without projections. Each case runs in
a process of its own, whose peak memory is the case's: its growth over what is held before, in
float32 on a CPU and bf16 on a GPU. `naive` stores all weights. Local kinds see what LOCAL says.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distgan.attention import (
    ATTENTION_KINDS,
    FactorisedAttention,
    SelfAttention,
    reference_attention,
)
from distgan.config import AttentionConfig
from distgan.precision import pick_device
from distgan.sparsity import Grid, least_density

TOKENS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
FRAMES, HEADS, WIDTH = 8, 4, 128
LOCAL: dict[str, Any] = {
    "window": (3, 7, 7), "block": (2, 8, 8), "reach": (1, 0, 0), "density": 0.125,
}  # fmt: skip
KINDS = ("naive", "dense", "self", "factorised", "window", "sparse", "additive")
LOCAL_KINDS = ("factorised", "window", "sparse")
NAIVE_UP_TO = 8192
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SHORT_LENGTHS = (64, 128, 256, 512, 1024, 2048)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tokens", nargs="+", type=int, choices=TOKENS, default=list(TOKENS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=60.0, help="a kind's larger sizes are "
                        "left out after a round took longer (default: 60)")  # fmt: skip
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: CPU time of all "
                        "threads, for a machine that has other work (default: wall)")  # fmt: skip
    parser.add_argument("--short", action="store_true", help="plain against fused, in both "
                        "precisions, where the switch for bf16 on a CPU comes from")  # fmt: skip
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # what a process of its own does
    arguments = parser.parse_args(argv)
    if arguments.case:
        kind, tokens = arguments.case
        found = _measure(kind, int(tokens), arguments.rounds, CLOCKS[arguments.clock])
        print(json.dumps(found))
    elif arguments.short:
        _short()
    else:
        _sweep(arguments)


def grid_of(tokens: int) -> Grid:
    """8 frames of a square, or of one twice as wide as high."""
    area = tokens // FRAMES
    height = 2 ** (int(math.log2(area)) // 2)
    return FRAMES, height, area // height


def _sweep(arguments: argparse.Namespace) -> None:
    device = pick_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, {arguments.clock} time\n")
    print("| kind | tokens | grid | forward ms | both ms | GFLOP, both | GFLOP/s | peak MiB | kept "
          "by formula, MiB |\n|---|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    seconds: dict[str, dict[int, float]] = {}
    for kind in arguments.kinds:
        for tokens in arguments.tokens:
            if kind == "naive" and tokens > NAIVE_UP_TO:
                break
            found = _in_own_process(kind, tokens, arguments)
            if found is None:
                print(f"| {kind} | {tokens} | out of memory | | | | | | |", flush=True)
                break
            seconds.setdefault(kind, {})[tokens] = found["both_s"]
            print(_row(kind, tokens, found), flush=True)
            if found["both_s"] > arguments.limit_s:
                break
    for base in ("dense", "self"):
        for kind in LOCAL_KINDS:
            if kind in seconds and base in seconds:
                print(_crossing(kind, base, seconds))


def _row(kind: str, tokens: int, found: dict[str, float]) -> str:
    t, h, w = grid_of(tokens)
    gflop = found["flops"] / 1e9
    return (
        f"| {kind} | {tokens} | {t} x {h} x {w} | {found['forward_s'] * 1e3:.1f} | "
        f"{found['both_s'] * 1e3:.1f} | {gflop:.2f} | {gflop / found['both_s']:.1f} | "
        f"{found['peak_mib']:.0f} | {found['kept_mib']:.1f} |"
    )


def _crossing(kind: str, base: str, seconds: dict[str, dict[int, float]]) -> str:
    """From how many tokens a kind is faster than another, at that and all larger sizes measured."""
    shared = sorted(seconds[kind].keys() & seconds[base].keys())
    slower = [n for n in shared if seconds[kind][n] >= seconds[base][n]]
    faster = [n for n in shared if not slower or n > slower[-1]]
    if not faster:
        return f"{kind} is not faster than {base} up to {shared[-1]} tokens"
    ratios = ", ".join(f"{n}: {seconds[base][n] / seconds[kind][n]:.1f}x" for n in faster)
    return f"{kind} is faster than {base} from {faster[0]} tokens on ({ratios})"


def _in_own_process(
    kind: str, tokens: int, arguments: argparse.Namespace
) -> dict[str, float] | None:
    """What the case measured; None if it did not fit in memory."""
    command = [sys.executable, "-m", "benchmarks", "attention", "--case", kind, str(tokens)]
    command += ["--rounds", str(arguments.rounds), "--clock", arguments.clock]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found
    if done.returncode == -9 or "out of memory" in done.stderr or "can't allocate" in done.stderr:
        return None
    raise RuntimeError(f"{kind} with {tokens} tokens: {done.stderr[-2000:]}")


def _measure(kind: str, tokens: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Medians over the rounds after one that warms up."""
    device = pick_device("auto")
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    head_dim = 64 if on_gpu else WIDTH // HEADS
    heads = 1 if kind == "dense" else HEADS
    width = HEADS * head_dim // heads
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, tokens, width, generator=generator).to(device, dtype).requires_grad_()
        for _ in range(3)
    )
    attend, pairs = _attention(kind, grid_of(tokens), head_dim)
    if on_gpu:
        attend(q, k, v)  # compiles
    held, runs = _held_mib(device), range(rounds + 1)
    with torch.no_grad():
        forward = [_seconds(lambda: attend(q, k, v), on_gpu, clock) for _ in runs]
    both = [_seconds(lambda: attend(q, k, v).sum().backward(), on_gpu, clock) for _ in runs]
    kept = (4 * q.numel() + heads * tokens) * q.element_size()
    if kind == "factorised":
        kept *= 2
    return {
        "forward_s": statistics.median(forward[1:]),
        "both_s": statistics.median(both[1:]),
        # Two products forward, four backward; recomputing scores is not useful work.
        "flops": 12.0 * pairs * heads * width,
        "peak_mib": _peak_mib(device) - held,
        "kept_mib": kept / 2**20,
    }


def _attention(
    kind: str, grid: Grid, head_dim: int
) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]:
    """From queries, keys and values to mixed values, and the number of pairs."""
    if kind == "naive":
        return reference_attention, math.prod(grid) ** 2
    if kind == "additive":
        return lambda q, k, v: (k.tanh() * q).sum(-1, keepdim=True).sigmoid() * v, math.prod(grid)
    # On small grids the blocks in reach are a larger share than that.
    density = max(LOCAL["density"], least_density(grid, LOCAL["block"], LOCAL["reach"]))
    options = LOCAL | {"density": density}
    config = AttentionConfig(kind=kind, heads=HEADS, head_dim=head_dim, **options)
    with torch.device("meta"):
        mix = ATTENTION_KINDS[kind](WIDTH, config)
    assert isinstance(mix, (SelfAttention, FactorisedAttention))
    if isinstance(mix, SelfAttention):
        return lambda q, k, v: mix.attend(q, k, v, grid), mix.num_pairs(grid)
    return lambda q, k, v: _space_then_time(q, k, v, grid), mix.num_pairs(grid)


def _space_then_time(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """Both products of the factorised kind, on the same queries and keys."""
    frames, area = grid[0], grid[1] * grid[2]

    def by_frame(x: Tensor) -> Tensor:
        return x.unflatten(2, (frames, area)).transpose(1, 2).flatten(0, 1)

    def by_place(x: Tensor) -> Tensor:
        return x.unflatten(2, (frames, area)).permute(0, 3, 1, 2, 4).flatten(0, 1)

    space = F.scaled_dot_product_attention(by_frame(q), by_frame(k), by_frame(v))
    space = space.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2, 3)
    time_ = F.scaled_dot_product_attention(by_place(q), by_place(k), by_place(space))
    return time_.unflatten(0, (-1, area)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _seconds(
    work: Callable[[], object], on_gpu: bool, clock: Callable[[], float] = time.perf_counter
) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def _held_mib(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    return _peak_mib(device)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _short() -> None:
    """Where plain matrix products beat the fused kernel: `distgan.attention.pairwise` takes them
    for bf16 on a CPU up to 512 tokens. 16 clips, 2 heads of 32."""
    device = pick_device("auto")
    print("| tokens | precision | fused ms | plain ms | plain / fused |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for length in SHORT_LENGTHS:
            q, k, v = (
                torch.randn(16, 2, length, 32, device=device, dtype=dtype, requires_grad=True)
                for _ in range(3)
            )
            times: dict[str, list[float]] = {"fused": [], "plain": []}
            paths: dict[str, Callable[..., Tensor]] = {
                "fused": F.scaled_dot_product_attention,
                "plain": reference_attention,
            }
            for _ in range(7):  # interleaved
                for name, path in paths.items():
                    times[name].append(_both_s(path, (q, k, v), device.type == "cuda"))
            fused, plain = (1e3 * statistics.median(times[name][1:]) for name in times)
            name = str(dtype).removeprefix("torch.")
            print(f"| {length} | {name} | {fused:.2f} | {plain:.2f} | {plain / fused:.2f} |")


def _both_s(path: Callable[..., Tensor], inputs: tuple[Tensor, ...], on_gpu: bool) -> float:
    return _seconds(lambda: path(*inputs).sum().backward(), on_gpu)
