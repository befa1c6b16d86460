"""The Fréchet distance between two sets of features, each taken as a Gaussian.

Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982;
on features of images by Heusel et al., 2017 (FID), of videos by Unterthiner et al., 2018 (FVD).
Legend: N clips, F features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDING = 1e-6  # negative eigenvalues up to this share of the largest are rounding


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What the distance needs to know of a set of features, in float64."""

    mean: NDArray[np.float64]
    """(F,)"""
    covariance: NDArray[np.float64]
    """(F, F), unbiased (divided by N - 1)."""
    count: int
    """N. Below about 2 F the distance is biased upwards: compare only sets of the same size."""

    @classmethod
    def of(cls, features: ArrayLike) -> "FeatureStatistics":
        """Statistics of features (N, F).

        Raises:
            ValueError: fewer than two clips, another shape, or features that are not finite.
        """
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or len(values) < 2:
            raise ValueError(f"expected features (N >= 2, F), not {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("features hold NaN or infinity: the clips or the extractor are broken")
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(mean, centred.T @ centred / (len(values) - 1), len(values))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), at least 0.

    All square roots are of symmetric matrices, by their eigenvalues, so nothing turns complex and
    nothing is added to the diagonals. Eigenvalues below zero by rounding count as zero.

    Raises:
        ValueError: different numbers of features, or a matrix that is no covariance.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"{len(a.mean)} features against {len(b.mean)}: not the same extractor")
    values, vectors = _eigen(a.covariance)
    root = (vectors * np.sqrt(values)) @ vectors.T
    cross, _ = _eigen(root @ b.covariance @ root)
    offset = a.mean - b.mean
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(cross).sum()
    return max(0.0, float(offset @ offset + trace))


def _eigen(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, none negative, and eigenvectors of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values.min() < -_ROUNDING * max(values.max(), 1e-300):
        raise ValueError(f"not a covariance: eigenvalue {values.min():.3g} of {values.max():.3g}")
    return np.maximum(values, 0.0), vectors
