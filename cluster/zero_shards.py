"""Where each ZeRO stage keeps a rank's share of weights, gradients and optimizer state.

The one module that looks inside DeepSpeed's optimizers (0.19.8); the tests of the engine hold it to
plain PyTorch, so a new version that moves things turns them red.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A contiguous piece of one flattened parameter, and where in the optimizer it lies."""

    name: str
    """Of the parameter."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """The piece's first element in the flattened parameter."""
    count: int
    """Its elements."""
    flat: Tensor
    """What the torch optimizer updates; it holds the piece, maybe beside others."""
    offset: int
    """Of the piece in `flat`."""

    def of_flat(self, values: Tensor) -> Tensor:
        """The piece's view of `flat`, or of optimizer state of the same shape."""
        return values.detach().view(-1)[self.offset : self.offset + self.count]

    def of_whole(self, values: Tensor) -> Tensor:
        """The piece of a whole tensor of the parameter's shape."""
        return values.detach().reshape(-1)[self.start : self.start + self.count]


class Shards(Protocol):
    """One rank's share of a network under one stage."""

    held: list[Shard]
    """All that this rank updates."""
    owned: list[Shard]
    """Of these, what it alone answers for: over the ranks each element is owned once."""
    gradients_are_whole: bool
    """Whether `gradients` are the same on all ranks, rather than each rank's own part."""

    def gradients(self) -> list[Tensor]:
        """Views of the reduced gradients, after the last backward of a step."""
        ...

    def forget_gradients(self) -> None:
        """Puts away what `gradients` shows, so that the next step starts from nothing."""
        ...

    def take_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Whole parameters by name, into the copies that the forward reads."""
        ...

    def slice_of_weight(self, name: str) -> Tensor:
        """This rank's slice (`slice_bounds`) of a parameter's current float32 values, a view."""
        ...


def slice_bounds(numel: int, rank: int, size: int) -> tuple[int, int]:
    """Start and end of a rank's slice when `numel` elements are dealt as evenly as ZeRO-3 does."""
    length = math.ceil(numel / size)
    return min(rank * length, numel), min((rank + 1) * length, numel)


def make_shards(stage: int, optimizer: Any, module: nn.Module, rank: int, size: int) -> Shards:
    """For DeepSpeed's optimizer of a network (at stage 0, the torch optimizer itself)."""
    parameters = dict(module.named_parameters())
    if stage == 0:
        return Replicated(parameters, rank, size)
    if stage == 3:
        return SplitWeights(optimizer, parameters, rank)
    return SplitState(optimizer, parameters, rank, size)


class Replicated:
    """Stage 0: everything whole on every rank; the writing of checkpoints is shared out."""

    gradients_are_whole = True

    def __init__(self, parameters: dict[str, nn.Parameter], rank: int, size: int) -> None:
        self.parameters, self.rank, self.size = parameters, rank, size
        self.held = [self._shard(n, p, 0, p.numel()) for n, p in parameters.items()]
        bounds = {n: slice_bounds(p.numel(), rank, size) for n, p in parameters.items()}
        pieces = [self._shard(n, p, *bounds[n]) for n, p in parameters.items()]
        self.owned = [piece for piece in pieces if piece.count]

    def _shard(self, name: str, parameter: nn.Parameter, start: int, end: int) -> Shard:
        return Shard(
            name=name,
            shape=tuple(parameter.shape),
            start=start,
            count=end - start,
            flat=parameter,
            offset=start,
        )

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def forget_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def take_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """The optimizer updates these very parameters, which `held` covers."""

    def slice_of_weight(self, name: str) -> Tensor:
        return _slice(self.parameters[name], self.rank, self.size)


class SplitState:
    """Stages 1 and 2: each rank updates its part of one flat tensor of all parameters.

    The weights stay whole on every rank, and in float32 they are exact copies.
    """

    gradients_are_whole = False

    def __init__(
        self, optimizer: Any, parameters: dict[str, nn.Parameter], rank: int, size: int
    ) -> None:
        self.optimizer, self.parameters, self.rank, self.size = optimizer, parameters, rank, size
        (self.flat,) = optimizer.single_partition_of_fp32_groups
        self.held = self._shards()
        self.owned = self.held

    def _shards(self) -> list[Shard]:
        (group,), (offsets,) = self.optimizer.bit16_groups, self.optimizer.round_robin_bit16_offsets
        names = {id(p): n for n, p in self.parameters.items()}
        first = self.rank * int(self.optimizer.partition_size[0])
        end = first + self.flat.numel()
        shards = []
        for parameter, offset in zip(group, offsets, strict=True):
            start = max(first - offset, 0)
            count = min(end - offset, parameter.numel()) - start
            if count > 0:
                shard = Shard(
                    name=names[id(parameter)],
                    shape=tuple(parameter.shape),
                    start=start,
                    count=count,
                    flat=self.flat,
                    offset=offset + start - first,
                )
                shards.append(shard)
        return shards

    def gradients(self) -> list[Tensor]:
        if self.optimizer.cpu_offload:
            self.optimizer._wait_for_offload_copies()  # a GPU may still be writing them
            assert self.flat.grad is not None
            return [self.flat.grad]
        return list(self.optimizer.averaged_gradients[0])

    def forget_gradients(self) -> None:
        optimizer = self.optimizer
        optimizer.zero_grad(set_to_none=True)
        optimizer.micro_step_id = -1
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
            assert self.flat.grad is not None
            self.flat.grad.zero_()
        else:
            optimizer.averaged_gradients[0] = None
            optimizer.all_grad_tensors[0] = None

    @torch.no_grad()
    def take_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    def slice_of_weight(self, name: str) -> Tensor:
        return _slice(self.parameters[name], self.rank, self.size)


class SplitWeights:
    """Stage 3: each rank keeps its slice of every parameter, padded to the same length."""

    gradients_are_whole = False

    def __init__(self, optimizer: Any, parameters: dict[str, nn.Parameter], rank: int) -> None:
        self.optimizer, self.parameters, self.rank = optimizer, parameters, rank
        shards = [self._shard(name, parameter) for name, parameter in parameters.items()]
        self.held = [shard for shard in shards if shard.count]
        self.owned = self.held

    def _shard(self, name: str, parameter: Any) -> Shard:
        group, offset, length = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
        start = min(self.rank * length, parameter.ds_numel)
        return Shard(
            name=name,
            shape=tuple(parameter.ds_shape),
            start=start,
            count=min(length, parameter.ds_numel - start),
            flat=self.optimizer.fp32_partitioned_groups_flat[group],
            offset=offset,
        )

    def gradients(self) -> list[Tensor]:
        """Padding is in them; DeepSpeed keeps it 0."""
        if self.optimizer.offload_optimizer:
            return [flat.grad for flat in self.optimizer.fp32_partitioned_groups_flat]
        return [g for group in self.optimizer.averaged_gradients.values() for g in group]

    def forget_gradients(self) -> None:
        """The next step's first backward overwrites the buffers themselves."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.optimizer.offload_optimizer:
            self.optimizer.reset_cpu_buffers()
        else:
            self.optimizer.averaged_gradients = {}

    @torch.no_grad()
    def take_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for shard in self.held:
            self.slice_of_weight(shard.name).copy_(shard.of_whole(tensors[shard.name]))
        whole: Any
        for name, whole in self.parameters.items():
            if whole.ds_status.name == "AVAILABLE":  # gathered to stay, as very small ones are
                whole.data.copy_(tensors[name])

    def slice_of_weight(self, name: str) -> Tensor:
        parameter: Any = self.parameters[name]
        partition: Tensor = parameter.ds_tensor
        start = min(self.rank * partition.numel(), parameter.ds_numel)
        return partition.detach()[: min(partition.numel(), parameter.ds_numel - start)]


def _slice(parameter: Tensor, rank: int, size: int) -> Tensor:
    start, end = slice_bounds(parameter.numel(), rank, size)
    return parameter.detach().view(-1)[start:end]
