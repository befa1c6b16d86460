"""The distance against closed forms, and what must hold for any pair of sets."""

import numpy as np
import pytest

from distgan.metrics.frechet import FeatureStatistics, frechet_distance


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> FeatureStatistics:
    return FeatureStatistics(mean=mean, covariance=covariance, count=1000)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def test_diagonal_covariances(rng: np.random.Generator) -> None:
    means, deviations = rng.normal(size=(2, 9)), rng.uniform(0, 3, size=(2, 9))
    a, b = (gaussian(m, np.diag(s**2)) for m, s in zip(means, deviations, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_commuting_covariances(rng: np.random.Generator) -> None:
    basis, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    deviations = rng.uniform(0.1, 3, size=(2, 12))
    a, b = (gaussian(np.zeros(12), basis @ np.diag(s**2) @ basis.T) for s in deviations)
    expected = ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_linear_map_of_one_gaussian(rng: np.random.Generator) -> None:
    # With C_b = S C_a S for symmetric positive S, the optimal map is S itself.
    factor, root = rng.normal(size=(2, 6, 6))
    covariance, scale = factor @ factor.T, root @ root.T
    a, b = (gaussian(np.zeros(6), c) for c in (covariance, scale @ covariance @ scale))
    rest = np.eye(6) - scale
    expected = np.trace(rest @ covariance @ rest)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_symmetric_zero_on_itself_and_unmoved_by_rotation(rng: np.random.Generator) -> None:
    sets = rng.normal(size=(2, 40, 7)) * rng.uniform(0.1, 2, size=(2, 1, 7)) + [[[0]], [[0.5]]]
    a, b = (FeatureStatistics.of(values) for values in sets)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    turn, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    turned = [FeatureStatistics.of(values @ turn) for values in sets]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_fewer_clips_than_features_stays_real_and_finite(rng: np.random.Generator) -> None:
    a, b = (FeatureStatistics.of(values) for values in rng.normal(size=(2, 5, 60)))
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)


def test_statistics_match_numpy(rng: np.random.Generator) -> None:
    values = rng.normal(size=(30, 4)).astype(np.float32) + 100
    statistics = FeatureStatistics.of(values)
    assert statistics.count == 30 and statistics.covariance.dtype == np.float64
    np.testing.assert_allclose(statistics.covariance, np.cov(values.T.astype(np.float64)))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        FeatureStatistics.of(np.array([[0.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="expected features"):
        FeatureStatistics.of(np.zeros((1, 3)))
    good = gaussian(np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="not a covariance"):
        frechet_distance(gaussian(np.zeros(2), np.diag([1.0, -1.0])), good)
    with pytest.raises(ValueError, match="extractor"):
        frechet_distance(gaussian(np.zeros(3), np.eye(3)), good)
