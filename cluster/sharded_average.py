"""The generator's moving average, shared out over the ranks."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed
from torch import Tensor

from cluster.zero import ZeroEngine
from cluster.zero_shards import slice_bounds
from distgan.checkpoint import Fragment
from distgan.ema import EMA
from distgan.generator import Generator

MOST_GATHERED_ELEMENTS = 50_000_000


class ShardedAverage:
    """Each rank keeps its slice of every averaged parameter; all of it meets to sample only.

    The slices are those of ZeRO-3, whatever the stage, so an update reads what the rank has.
    """

    def __init__(self, average: Generator, engine: ZeroEngine) -> None:
        """Takes the slices out of a whole module, which is left without weights."""
        self.engine = engine
        self.rank, self.world_size = engine.rank, engine.world_size
        self.generator = average.requires_grad_(False)
        self.shapes = {n: tuple(p.shape) for n, p in average.named_parameters()}
        self.slices = {n: self._slice(p).clone() for n, p in average.named_parameters()}
        self._let_go()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        own = list(self.slices.values())
        source = [self.engine.shards.slice_of_weight(name) for name in self.slices]
        torch._foreach_lerp_(own, [s.to(own[0].device) for s in source], 1 - decay)

    @contextlib.contextmanager
    def whole(self) -> Iterator[Generator]:
        gathered = self._gather()
        for name, parameter in self.generator.named_parameters():
            values = gathered.pop(name)
            is_image = values.dim() == 4
            layout = torch.channels_last if is_image else torch.contiguous_format
            parameter.data = values.contiguous(memory_format=layout)
        try:
            yield self.generator
        finally:
            self._let_go()

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{EMA}/{name}": shape for name, shape in self.shapes.items()}

    def state_fragments(self) -> list[Fragment]:
        fragments = []
        for name, values in self.slices.items():
            if values.numel():
                start, _ = slice_bounds(self._numel(name), self.rank, self.world_size)
                piece = values.to("cpu", copy=True)
                fragments.append(Fragment(f"{EMA}/{name}", self.shapes[name], start, piece))
        return fragments

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, values in self.slices.items():
            values.copy_(self._slice(tensors[f"{EMA}/{name}"]))

    def _slice(self, whole: Tensor) -> Tensor:
        start, end = slice_bounds(whole.numel(), self.rank, self.world_size)
        return whole.detach().reshape(-1)[start:end]

    def _numel(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    def _let_go(self) -> None:
        for parameter in self.generator.parameters():
            parameter.data = parameter.data.new_empty(0)

    def _gather(self) -> dict[str, Tensor]:
        """All parameters whole, by a few large collectives."""
        whole: dict[str, Tensor] = {}
        names: list[str] = []
        for name in self.slices:
            names.append(name)
            if sum(map(self._numel, names)) >= MOST_GATHERED_ELEMENTS:
                whole |= self._gather_some(names)
                names = []
        return whole | self._gather_some(names)

    def _gather_some(self, names: list[str]) -> dict[str, Tensor]:
        if not names:
            return {}
        lengths = [slice_bounds(self._numel(name), 0, self.world_size)[1] for name in names]
        sent = torch.cat([
            torch.nn.functional.pad(self.slices[name], (0, length - self.slices[name].numel()))
            for name, length in zip(names, lengths, strict=True)
        ])  # fmt: skip
        received = sent.new_empty(self.world_size, sent.numel())
        torch.distributed.all_gather(list(received), sent)
        whole, offset = {}, 0
        for name, length in zip(names, lengths, strict=True):
            flat = received[:, offset : offset + length].reshape(-1)[: self._numel(name)]
            whole[name] = flat.reshape(self.shapes[name])
            offset += length
        return whole
