"""Random draws without global state.

Every draw follows from (seed, purpose, step, index), where `index` is the clip's place in the
global batch. Splitting a batch over ranks or micro-batches therefore changes no draw.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str, step: int = 0, index: int = 0) -> int:
    """The first 8 bytes of sha256("seed/purpose/step/index"), as a non-negative 63-bit integer."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(
    seed: int, purpose: str, step: int, index: int, device: torch.device
) -> torch.Generator:
    """A generator for one clip, on the device that computes (CPU and GPU draws differ).

    PyTorch's CPU generator keeps the lower 32 bits of the seed, so among many millions of draws a
    few coincide.
    """
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, step, index))


def numpy_generator(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """A NumPy generator for one draw."""
    return np.random.default_rng(derive_seed(seed, purpose, step, index))


class Address(TypedDict):
    """What the draws for some clips of a global batch follow from."""

    seed: int
    purpose: str
    step: int
    places: Iterable[int]
    """The clips' places in the global batch."""
    device: torch.device


def normal_per_clip(shape: tuple[int, ...], **address: Unpack[Address]) -> Tensor:
    """Standard normal draws, one generator a clip: (len(places), *shape), float32."""
    return _per_clip(Tensor.normal_, shape, address)


def uniform_per_clip(count: int, **address: Unpack[Address]) -> Tensor:
    """Uniform draws in [0, 1), one generator a clip: (len(places), count), float32."""
    return _per_clip(Tensor.uniform_, (count,), address)


def _per_clip(fill: Callable[..., Tensor], shape: tuple[int, ...], address: Address) -> Tensor:
    seed, purpose, step = address["seed"], address["purpose"], address["step"]
    device, places = address["device"], list(address["places"])
    draws = torch.empty((len(places), *shape), device=device)
    for of_clip, place in zip(draws, places, strict=True):
        fill(of_clip, generator=torch_generator(seed, purpose, step, place, device))
    return draws
