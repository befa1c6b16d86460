"""Drawing clips from a generator: each clip follows from its own seed, whatever its batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distgan.generator import Generator
from distgan.seeding import normal_per_clip

BATCH_SIZE = 32


def to_uint8(video_BCTHW: Tensor) -> Tensor:
    """Pixels in [-1, 1], clamped, to uint8."""
    return ((video_BCTHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class Sampler:
    """Clips from one generator, in float32 or bf16 as it was trained."""

    def __init__(self, generator: Generator, precision: str, *, truncation: float = 1.0) -> None:
        """`truncation` below 1: less variety, fewer failures; see `Generator.forward`."""
        self.generator = generator
        self.autocast = precision == "bf16"
        self.device = next(generator.parameters()).device
        self.truncation = truncation

    @torch.no_grad()
    def clips(
        self,
        seeds: Sequence[int],
        given_BCTHW: Tensor | None = None,
        known_B1THW: Tensor | None = None,
    ) -> Tensor:
        """uint8 (len(seeds), 3, T, H, W) on the CPU.

        Args:
            seeds: one a clip; the same seed gives the same clip for the same weights.
            given_BCTHW: the input videos, one a seed, where the generator reads one.
            known_B1THW: where their pixels are true.
        """
        batches = []
        for start in range(0, len(seeds), BATCH_SIZE):
            chosen = slice(start, start + BATCH_SIZE)
            latent_BZ = torch.cat([self._latent(seed) for seed in seeds[chosen]])
            given = None if given_BCTHW is None else given_BCTHW[chosen].to(self.device)
            known = None if known_B1THW is None else known_B1THW[chosen].to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                video = self.generator(latent_BZ, given, known, self.truncation)
            batches.append(to_uint8(video).cpu())
        return torch.cat(batches)

    def _latent(self, seed: int) -> Tensor:
        return normal_per_clip(
            (self.generator.latent_dim,),
            seed=seed,
            purpose="sample",
            step=0,
            places=[0],
            device=self.device,
        )
