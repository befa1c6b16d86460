"""The proxy distance between generated and real clips, and the rows that show whether to trust it.

Legend: N clips, C channels, T frames, H height, W width, F features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distgan.metrics.extractors import SeededExtractor
from distgan.metrics.frechet import FeatureStatistics, frechet_distance
from distgan.metrics.validity import valid_clips
from distgan.seeding import numpy_generator


class ProxyDistance:
    """Fréchet distance from one set of real clips, on `SeededExtractor`'s features.

    Each feature is divided by its standard deviation over the real clips, so that faint features,
    motion among them, count as much as strong ones. The distance has no unit.
    """

    def __init__(
        self,
        real_NCTHW: Tensor,
        *,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        """Measures the real clips.

        Args:
            real_NCTHW: uint8 RGB (N, 3, T, H, W), N >= 2, T >= 2, H and W >= 16.
            batch_size: clips through the extractor at a time; changes nothing but memory.
            device: where the extractor runs.

        Raises:
            ValueError: another dtype or shape.
        """
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._extractor = SeededExtractor().to(self._device)
        features = self._features(real_NCTHW)
        deviation = features.std(axis=0)
        # A feature that hardly varies would turn rounding into distance.
        self._scale = np.maximum(deviation, 1e-3 * deviation.max() + 1e-12)
        self._real = FeatureStatistics.of(features / self._scale)

    def distance(self, clips_NCTHW: Tensor) -> float:
        """Distance of uint8 RGB clips (N, 3, T, H, W) from the real ones, at least 0."""
        features = self._features(clips_NCTHW) / self._scale
        return frechet_distance(FeatureStatistics.of(features), self._real)

    def _features(self, clips_NCTHW: Tensor) -> NDArray[np.float64]:
        if clips_NCTHW.dtype != torch.uint8:
            raise ValueError(f"expected uint8 clips, not {clips_NCTHW.dtype}")
        batches = []
        for start in range(0, len(clips_NCTHW), self._batch_size):
            batch = clips_NCTHW[start : start + self._batch_size].to(self._device)
            batches.append(self._extractor(batch.float() / 127.5 - 1.0).cpu())
        return torch.cat(batches).double().numpy()


@dataclass(frozen=True, kw_only=True)
class SanityRow:
    """One set of clips, measured."""

    name: str
    proxy_frechet: float
    valid_share: float | None
    """Share of valid clips; None where validity has no meaning (not the demo's data)."""


def sanity_rows(
    proxy: ProxyDistance,
    held_out_NCTHW: Tensor,
    others: Mapping[str, Tensor] | None = None,
    *,
    seed: int = 0,
    with_validity: bool = False,
) -> list[SanityRow]:
    """Measures held-out real clips, what is wrong with them on purpose, and `others`.

    Rows in order: `real` (the floor), `real, frames shuffled`, `real, frozen` (all frames equal
    frame 0), then `others` under their names (say `generated`, `untrained generator`), `noise`
    (uniform pixels). All sets should have as many clips: the distance's bias depends on it.

    Args:
        proxy: made from other real clips.
        held_out_NCTHW: uint8 RGB (N, 3, T, H, W).
        others: further clips by name, same layout.
        seed: of the shuffles and the noise.
        with_validity: also give the share of valid clips; for the demo's clips only.
    """
    sets = {
        "real": held_out_NCTHW,
        "real, frames shuffled": shuffle_frames(held_out_NCTHW, seed),
        "real, frozen": held_out_NCTHW[:, :, :1].expand_as(held_out_NCTHW),
        **(others or {}),
        "noise": _noise(held_out_NCTHW, seed),
    }
    return [
        SanityRow(
            name=name,
            proxy_frechet=proxy.distance(clips),
            valid_share=valid_share(clips) if with_validity else None,
        )
        for name, clips in sets.items()
    ]


def shuffle_frames(clips_NCTHW: Tensor, seed: int) -> Tensor:
    """Clips (N, C, T, H, W) with each one's frames in an order of its own."""
    frames = clips_NCTHW.shape[2]
    orders = [
        torch.from_numpy(numpy_generator(seed, "shuffled frames", index=index).permutation(frames))
        for index in range(len(clips_NCTHW))
    ]
    return torch.stack([clip[:, order] for clip, order in zip(clips_NCTHW, orders, strict=True)])


def _noise(like: Tensor, seed: int) -> Tensor:
    rng = numpy_generator(seed, "noise clips")
    return torch.from_numpy(rng.integers(0, 256, tuple(like.shape), dtype=np.uint8))


def valid_share(clips_NCTHW: Tensor) -> float:
    """Share of clips, uint8 RGB (N, 3, T, H, W), that the demo could have rendered."""
    video = clips_NCTHW.permute(0, 2, 3, 4, 1).cpu().numpy()
    return float(valid_clips(video).mean())
