"""The processes that train together, and what they tell each other beside the gradients."""

import contextlib
import json
import platform
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from distgan.errors import DistganError, kind_of, of_kind

Json = Any


class Team(Protocol):
    """The ranks of one run. Every method is called by all of them, in the same order."""

    rank: int
    size: int

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums of scalars over the ranks, the same bits on each."""
        ...

    def gather(self, value: Json) -> list[Json]:
        """Every rank's value (anything that JSON holds), in the order of the ranks."""
        ...


class Alone:
    """One process that trains by itself."""

    rank, size = 0, 1

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(values)

    def gather(self, value: Json) -> list[Json]:
        return [value]


class GroupTeam:
    """The ranks of the default process group of torch.distributed."""

    def __init__(self, device: torch.device) -> None:
        """`device`: where the group's backend communicates, this rank's own."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = sorted(values)
        numbers = [values[name].detach().to(self.device, torch.float64) for name in names]
        packed = torch.stack(numbers)
        dist.all_reduce(packed)
        return dict(zip(names, packed.unbind(), strict=True))

    def gather(self, value: Json) -> list[Json]:
        data = json.dumps(value).encode()
        size = torch.tensor([len(data)], device=self.device)
        sizes = [torch.empty_like(size) for _ in range(self.size)]
        dist.all_gather(sizes, size)
        longest = int(torch.cat(sizes).max())
        own = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8).to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return [json.loads(bytes(part.cpu().numpy())) for part in parts]


def from_first(team: Team, value: Json) -> Json:
    """Rank 0's value, on every rank; whatever others give is dropped."""
    return team.gather(value if team.rank == 0 else None)[0]


@contextlib.contextmanager
def failing_together(team: Team) -> Iterator[None]:
    """For what each rank does by itself inside, and could fail at: without calls of the team.

    A rank that failed alone would leave the others waiting for it, and Ray to bury its message.

    Raises:
        DistganError: of the first rank that failed, on every rank; the message says which it was.
    """
    own: DistganError | None = None
    try:
        yield
    except DistganError as error:
        own = error
    if team.size == 1:
        if own is not None:
            raise own
        return
    told = [kind_of(own), platform.node(), str(own)] if own is not None else None
    for rank, failure in enumerate(team.gather(told)):
        if failure is not None:
            kind, host, message = failure
            raise of_kind(kind, f"rank {rank} on {host}: {message}") from own
