"""The seeded extractor and the proxy distance: fixed, cheap, and in the right order."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from distgan.data import demo
from distgan.metrics.extractors import SeededExtractor
from distgan.metrics.proxy import ProxyDistance, sanity_rows, shuffle_frames


def demo_clips(seed: int, count: int = 160) -> Tensor:
    return torch.from_numpy(demo.render_clips(count, seed=seed, size=32)).permute(0, 4, 1, 2, 3)


@pytest.fixture(scope="module")
def real() -> Tensor:
    return demo_clips(0)


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    return demo_clips(1)


@pytest.fixture(scope="module")
def proxy(real: Tensor) -> ProxyDistance:
    return ProxyDistance(real)


@pytest.mark.parametrize("shape", [(2, 16, 16), (5, 33, 47), (8, 64, 64), (3, 200, 130)])
def test_any_length_and_size(shape: tuple[int, int, int]) -> None:
    video = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = SeededExtractor()(video)
    assert features.shape == (2, SeededExtractor.num_features) and features.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 1, 32, 32), (2, 1, 8, 32, 32), (2, 3, 8, 8, 32)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected clips"):
        SeededExtractor()(torch.zeros(shape))


def test_weights_are_fixed_and_leave_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    video = torch.linspace(-1, 1, 3 * 4 * 16 * 16).reshape(1, 3, 4, 16, 16)
    first = SeededExtractor()(video)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(SeededExtractor()(video), first)
    assert not torch.equal(SeededExtractor(seed=1)(video), first)
    torch.set_rng_state(before)
    # Pinned: a changed extractor needs a new NAME, or old numbers would be compared with its own.
    pinned = [0.3088, 0.0939, -0.0196]
    assert first[0, [0, 40, 100]].tolist() == pytest.approx(pinned, abs=1e-3)


def test_features_see_motion() -> None:
    clips = demo_clips(2, 8).float() / 127.5 - 1
    frozen = clips[:, :, :1].expand_as(clips)
    extractor = SeededExtractor()
    moved = (extractor(clips) - extractor(frozen)).norm(dim=1) / extractor(frozen).norm(dim=1)
    assert moved.min() > 0.05


def test_batch_size_changes_nothing(real: Tensor, held_out: Tensor) -> None:
    distances = [ProxyDistance(real, batch_size=n).distance(held_out) for n in (7, 64, 160)]
    assert distances == pytest.approx([distances[0]] * 3, rel=1e-5)


def test_distance_is_deterministic_and_zero_on_itself(
    proxy: ProxyDistance, real: Tensor, held_out: Tensor
) -> None:
    assert proxy.distance(real) == pytest.approx(0, abs=1e-4)
    assert proxy.distance(held_out) == proxy.distance(held_out)


def test_sanity_rows_come_in_order(proxy: ProxyDistance, held_out: Tensor) -> None:
    grey = torch.full_like(held_out, 120)
    rows = sanity_rows(proxy, held_out, {"grey": grey}, seed=3, with_validity=True)
    assert [row.name for row in rows] == [
        "real",
        "real, frames shuffled",
        "real, frozen",
        "grey",
        "noise",
    ]
    distance = {row.name: row.proxy_frechet for row in rows}
    for spoilt in ("real, frames shuffled", "real, frozen"):
        assert 8 * distance["real"] < distance[spoilt] < distance["noise"] / 8
    valid = {row.name: row.valid_share or 0.0 for row in rows}
    assert valid["real"] >= 0.98
    assert valid["real, frames shuffled"] <= 0.1 and valid["real, frozen"] <= 0.05
    assert valid["grey"] == valid["noise"] == 0
    assert sanity_rows(proxy, held_out, {"grey": grey}, seed=3, with_validity=True) == rows
    assert sanity_rows(proxy, held_out)[0].valid_share is None


def test_blur_costs_more_the_stronger_it_is(proxy: ProxyDistance, held_out: Tensor) -> None:
    distances = []
    for sigma in (0.0, 0.5, 1.0, 2.0, 4.0):
        blurred = ndimage.gaussian_filter(
            held_out.numpy().astype(np.float32), (0, 0, 0, sigma, sigma)
        )
        distances.append(proxy.distance(torch.from_numpy(np.rint(blurred).astype(np.uint8))))
    assert distances == sorted(distances)
    assert distances[-1] > 20 * distances[0]


def test_shuffling_keeps_the_frames(held_out: Tensor) -> None:
    shuffled = shuffle_frames(held_out, seed=0)
    assert not torch.equal(shuffled, held_out)
    for clip, other in zip(held_out[:5], shuffled[:5], strict=True):
        sums = [frames.long().sum(dim=(0, 2, 3)).sort().values for frames in (clip, other)]
        assert torch.equal(*sums)


def test_only_bytes_are_measured(real: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        ProxyDistance(real.float())
