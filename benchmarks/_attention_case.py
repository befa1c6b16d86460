"""One case of `benchmarks.attention`: times and memory of a kind at a size, in this process."""

import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
from distgan.sparsity import Grid, least_density, three

FRAMES, HEADS, WIDTH = 8, 4, 128
LOCAL: dict[str, Any] = {
    "window": (3, 7, 7), "block": (2, 8, 8), "reach": (1, 0, 0), "density": 0.125,
}  # fmt: skip
WARM_UP_TOKENS = 64  # their memory is nothing beside that of the libraries which they load
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Case:
    """Queries, keys and values of a kind on a grid, and what mixes them."""

    qkv: tuple[Tensor, Tensor, Tensor]
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    num_pairs: int

    def forward(self) -> None:
        with torch.no_grad():
            self.attend(*self.qkv)

    def both(self) -> None:
        self.attend(*self.qkv).sum().backward()


def measure(
    kind: str, tokens: int, rounds: int, clock: Callable[[], float], memory_gib: float
) -> dict[str, float]:
    """Medians over the rounds after one that warms up, and the growth of the peak memory.

    Args:
        memory_gib: what the case may take besides its inputs; 0: no bound. An allocation beyond it
            fails.
    """
    device = pick_device("auto")
    _make_case(kind, WARM_UP_TOKENS, device).both()
    case = _make_case(kind, tokens, device)
    if memory_gib:
        _limit_memory(device, memory_gib)
    if device.type == "cuda":
        case.both()  # compiles
    held, runs = _held_mib(device), range(rounds + 1)
    forward = [seconds(case.forward, device, clock) for _ in runs]
    both = [seconds(case.both, device, clock) for _ in runs]
    q = case.qkv[0]
    kept = (4 * q.numel() + q.numel() // q.shape[-1]) * q.element_size()
    return {
        "forward_s": statistics.median(forward[1:]),
        "both_s": statistics.median(both[1:]),
        # Two products forward, four backward; recomputing scores is not useful work.
        "flops": 12.0 * case.num_pairs * q.shape[1] * q.shape[-1],
        "peak_mib": _peak_mib(device) - held,
        "kept_mib": (2 if kind == "factorised" else 1) * kept / 2**20,
    }


def grid_of(tokens: int) -> Grid:
    """8 frames of a square, or of one twice as wide as high."""
    area = tokens // FRAMES
    height = 2 ** (int(math.log2(area)) // 2)
    return FRAMES, height, area // height


def _make_case(kind: str, tokens: int, device: torch.device) -> Case:
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
    return Case((q, k, v), *_attention(kind, grid_of(tokens), head_dim))


def _attention(
    kind: str, grid: Grid, head_dim: int
) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]:
    """From queries, keys and values to mixed values, and the number of pairs."""
    if kind == "naive":
        return reference_attention, math.prod(grid) ** 2
    if kind == "additive":
        return lambda q, k, v: (k.tanh() * q).sum(-1, keepdim=True).sigmoid() * v, math.prod(grid)
    # On small grids the blocks in reach are a larger share than that, and windows are cut.
    density = max(LOCAL["density"], least_density(grid, LOCAL["block"], LOCAL["reach"]))
    window = three(map(min, zip(LOCAL["window"], grid, strict=True)))
    options = LOCAL | {"density": density, "window": window}
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


def seconds(
    work: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """How long it takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def memory_at_hand_gib() -> float:
    """Three quarters of what the machine has free now, or of all its memory where it does not say
    what is free."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        facts = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return 0.75 * int(facts["MemAvailable"].split()[0]) / 2**20
    return 0.75 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def _limit_memory(device: torch.device, memory_gib: float) -> None:
    """From now on: allocations beyond it raise an error, before the machine swaps or kills."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory / 2**30
        held = torch.cuda.memory_reserved() / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, (held + memory_gib) / whole))
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _held_mib(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    return _peak_mib(device)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
