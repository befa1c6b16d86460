"""Every kind of attention from 512 to 65,536 tokens, forward and backward: time and peak memory.

    python -m benchmarks attention                        all kinds and sizes that fit
    python -m benchmarks attention --tokens 4096 --kinds self window
    python -m benchmarks attention --short                plain against fused products, up to 2048

One clip, 4 heads of 32 (64 on a GPU), tokens on a grid of 8 frames; of a layer's work what differs
between kinds: from queries, keys and values to mixed values, without projections. `naive` stores
all weights; `dense` is one head. window sees 3 x 7 x 7; sparse has blocks of 2 x 8 x 8, a reach of
1 in time and a density of 1/8 (more where the reach is more).

Each case runs in a process of its own, after a small one that loads the libraries; its memory is
what the peak grows by, in float32 on a CPU and bf16 on a GPU, and bounded by --memory-gib. A useful
FLOP is one of a pair that the kind has by definition. Below the table: how the kinds compare with
`dense` at each size, and from how many tokens on each is faster.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._attention_case import CLOCKS, grid_of, measure, memory_at_hand_gib, seconds
from distgan.attention import reference_attention
from distgan.precision import pick_device

TOKENS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
KINDS = ("naive", "dense", "self", "factorised", "window", "sparse", "additive")
LOCAL_KINDS = ("factorised", "window", "sparse")
SHORT_LENGTHS = (64, 128, 256, 512, 1024, 2048)
NO_MEMORY = ("out of memory", "allocate memory", "MemoryError", "bad_alloc")
Found = dict[str, dict[int, dict[str, float]]]  # kind -> tokens -> figures


def main(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.case:
        kind, tokens = arguments.case
        clock = CLOCKS[arguments.clock]
        found = measure(kind, int(tokens), arguments.rounds, clock, arguments.memory_gib)
        print(json.dumps(found))
    elif arguments.short:
        _short()
    else:
        _sweep(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tokens", nargs="+", type=int, choices=TOKENS, default=list(TOKENS))
    parser.add_argument("--rounds", type=int, default=3, help="medians are of so many, after one "
                        "that warms up (default: 3)")  # fmt: skip
    parser.add_argument("--limit-s", type=float, default=60.0, help="after a size that "
                        "took longer, a kind's larger ones are left out; the table says so "
                        "(default: 60)")  # fmt: skip
    parser.add_argument("--memory-gib", type=float, help="a case that needs more, besides its "
                        "inputs, ends, and the kind's larger sizes are left out; the table says so "
                        "(default: on a CPU 3/4 of what is free, on a GPU no bound)")  # fmt: skip
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: CPU time of all "
                        "threads, for a machine that has other work (default: wall)")  # fmt: skip
    parser.add_argument("--short", action="store_true", help="plain against fused, in both "
                        "precisions, where the switch for bf16 on a CPU comes from")  # fmt: skip
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # what a process of its own does
    return parser


def _sweep(arguments: argparse.Namespace) -> None:
    device = pick_device("auto")
    if arguments.memory_gib is None:
        arguments.memory_gib = 0.0 if device.type == "cuda" else memory_at_hand_gib()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    bound = f", at most {arguments.memory_gib:.3g} GiB" if arguments.memory_gib else ""
    print(f"{name}, {torch.get_num_threads()} threads, {arguments.clock} time{bound}\n")
    print("| kind | tokens | grid | forward ms | both ms | GFLOP, both | GFLOP/s | peak MiB | kept "
          "by formula, MiB |\n|---|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    found: Found = {}
    for kind in arguments.kinds:
        found[kind] = {}
        why = ""
        for tokens in sorted(arguments.tokens):
            figures = None if why else _in_own_process(kind, tokens, arguments)
            if figures is None:
                why = why or _out_of_memory(arguments.memory_gib)
                print(f"| {kind} | {tokens} | left out: {why} | | | | | | |", flush=True)
                continue
            found[kind][tokens] = figures
            print(_row(kind, tokens, figures), flush=True)
            if figures["both_s"] > arguments.limit_s:
                why = f"{tokens} tokens took {figures['both_s']:.0f} s, over --limit-s"
    print()
    for line in summary(found):
        print(line)


def _out_of_memory(memory_gib: float) -> str:
    return f"more than {memory_gib:.3g} GiB" if memory_gib else "out of memory"


def _row(kind: str, tokens: int, figures: dict[str, float]) -> str:
    t, h, w = grid_of(tokens)
    gflop = figures["flops"] / 1e9
    return (
        f"| {kind} | {tokens} | {t} x {h} x {w} | {figures['forward_s'] * 1e3:.1f} | "
        f"{figures['both_s'] * 1e3:.1f} | {gflop:.2f} | {gflop / figures['both_s']:.1f} | "
        f"{figures['peak_mib']:.0f} | {figures['kept_mib']:.1f} |"
    )


def summary(found: Found) -> Iterator[str]:
    """How `dense` compares with `naive`, and the kinds that leave pairs out with `dense`."""
    for kind, base in (("dense", "naive"), *((kind, "dense") for kind in LOCAL_KINDS)):
        shared = sorted(found.get(kind, {}).keys() & found.get(base, {}).keys())
        if not shared:
            continue
        for name, figure in (
            ("time", lambda figures: figures["both_s"]),
            ("peak memory", lambda figures: figures["peak_mib"]),
            ("useful FLOP/s", lambda figures: figures["flops"] / figures["both_s"]),
        ):
            ratios = (
                f"{n}: {figure(found[kind][n]) / max(figure(found[base][n]), 1e-9):.2f}"
                for n in shared
            )
            yield f"{kind} / {base}, {name}: {', '.join(ratios)}"
        if base == "dense":
            yield _crossing(kind, shared, found)


def _crossing(kind: str, shared: list[int], found: Found) -> str:
    """From how many tokens a kind is faster, at that and all larger sizes measured."""
    slower = [n for n in shared if found[kind][n]["both_s"] >= found["dense"][n]["both_s"]]
    faster = [n for n in shared if not slower or n > slower[-1]]
    if faster:
        return f"{kind} is faster than dense from {faster[0]} tokens on"
    return f"{kind} is not faster than dense up to {shared[-1]} tokens"


def _in_own_process(
    kind: str, tokens: int, arguments: argparse.Namespace
) -> dict[str, float] | None:
    """What the case measured; None if it did not fit in memory."""
    command = [sys.executable, "-m", "benchmarks", "attention", "--case", kind, str(tokens)]
    command += ["--rounds", str(arguments.rounds), "--clock", arguments.clock]
    command += ["--memory-gib", str(arguments.memory_gib)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found
    if done.returncode == -9 or any(words in done.stderr for words in NO_MEMORY):
        return None
    raise RuntimeError(f"{kind} with {tokens} tokens: {done.stderr[-2000:]}")


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
                    times[name].append(_both_s(path, (q, k, v), device))
            fused, plain = (1e3 * statistics.median(times[name][1:]) for name in times)
            name = str(dtype).removeprefix("torch.")
            print(f"| {length} | {name} | {fused:.2f} | {plain:.2f} | {plain / fused:.2f} |")


def _both_s(path: Callable[..., Tensor], inputs: tuple[Tensor, ...], device: torch.device) -> float:
    return seconds(lambda: path(*inputs).sum().backward(), device)
