"""The validity rule: genuine clips pass, even a little soft; everything else fails, by its rule."""

import io

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from distgan.data import demo
from distgan.metrics.validity import RULES, valid_clips, validity_report
from distgan.pictures import encode_mp4

Clips = NDArray[np.uint8]
NUM_CLIPS = 128


def through_the_codec(video: Clips) -> Clips:
    data = encode_mp4(video, 8.0, crf=8, pixel_format="yuv444p")
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.uint8)


def halve(clips: Clips) -> Clips:
    n, t, height, width, _ = clips.shape
    return as_pixels(clips.reshape(n, t, height // 2, 2, width // 2, 2, 3).mean(axis=(3, 5)))


def as_pixels(values: NDArray[np.float64]) -> Clips:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def blurred(clips: Clips, pixels: float) -> Clips:
    sigma = (0, 0, pixels, pixels, 0)
    return as_pixels(ndimage.gaussian_filter(clips.astype(np.float64), sigma))


@pytest.fixture(scope="module")
def real() -> Clips:
    """Clips as training sees them: encoded, decoded, scaled down to 32 pixels, 8 frames."""
    videos = demo.render_clips(NUM_CLIPS, seed=11, num_frames=12)
    return halve(np.stack([through_the_codec(video) for video in videos]))[:, 3:11]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def share(clips: Clips) -> float:
    return float(valid_clips(clips).mean())


def test_real_clips_pass(real: Clips) -> None:
    assert share(real) >= 0.98


@pytest.mark.parametrize(("size", "num_frames"), [(64, 8), (32, 16), (32, 4)])
def test_real_clips_pass_at_other_sizes_and_lengths(size: int, num_frames: int) -> None:
    clips = halve(demo.render_clips(60, seed=7, size=2 * size, num_frames=num_frames))
    assert share(clips) >= 0.95


def test_mild_softness_noise_and_wobble_pass(real: Clips, rng: np.random.Generator) -> None:
    assert share(blurred(real, 0.7)) >= 0.95
    noisy = as_pixels(blurred(real, 0.5) + rng.normal(0, 8, real.shape))
    assert share(noisy) >= 0.95
    gain = rng.uniform(0.95, 1.05, (NUM_CLIPS, real.shape[1], 1, 1, 3))
    assert share(as_pixels(real * gain)) >= 0.95
    specks = real.copy()
    specks[:, 2, 1:3, 1:3] = specks[:, 2, 1:3, 1:3] // 2 + 100
    assert share(specks) >= 0.9  # a few shapes touch the speck


def test_shuffled_and_frozen_clips_fail(real: Clips, rng: np.random.Generator) -> None:
    shuffled = np.stack([clip[rng.permutation(len(clip))] for clip in real])
    assert share(shuffled) <= 0.1
    frozen = np.repeat(real[:, :1], real.shape[1], axis=1)
    assert share(frozen) <= 0.05
    assert validity_report(frozen)["breaks_speed"] >= 0.95


def test_noise_and_empty_clips_fail(real: Clips, rng: np.random.Generator) -> None:
    assert share(rng.integers(0, 256, real.shape, dtype=np.uint8)) == 0
    assert share(as_pixels(rng.normal(128, 40, real.shape))) == 0
    assert share(np.zeros_like(real)) == 0
    assert share(np.full_like(real, 255)) == 0


def test_two_shapes_fail(real: Clips) -> None:
    pairs = np.maximum(real, real[::-1])
    apart = pairs[~_always_touching(real, real[::-1])]
    assert len(apart) > NUM_CLIPS / 3
    assert share(apart) == 0
    assert share(pairs) <= 0.02


def test_mush_fails(real: Clips) -> None:
    assert share(blurred(real, 3.0)) == 0
    assert validity_report(blurred(real, 3.0))["breaks_solid"] == 1
    averaged = np.mean([np.roll(real, k, axis=0) for k in range(6)], axis=0)
    assert share(as_pixels(averaged)) == 0


def test_colours_that_change_fail(real: Clips) -> None:
    turned = _with_background(real, real[..., [1, 2, 0]])
    sudden = np.concatenate([real[:, :4], turned[:, 4:]], axis=1)
    assert share(sudden) == 0
    fade = np.linspace(0, 1, real.shape[1])[None, :, None, None, None]
    gradual = as_pixels((1 - fade) * real + fade * turned)
    assert share(gradual) == 0
    stripes = np.where((np.arange(32) // 3 % 2 == 0)[:, None, None], real, turned)
    assert share(stripes.astype(np.uint8)) == 0


def test_implausible_motion_fails(real: Clips, rng: np.random.Generator) -> None:
    back_and_forth = real[:, [0, 1] * (real.shape[1] // 2)]
    report = validity_report(back_and_forth)
    assert report["valid"] <= 0.35 and report["breaks_path"] >= 0.65  # the rest is at a wall
    slow = np.repeat(real[:, : real.shape[1] // 2], 2, axis=1)
    assert share(slow) <= 0.02
    fast = demo.render_clips(100, seed=3, size=32, num_frames=16)[:, ::2]
    assert share(fast) <= 0.02
    jumps = np.concatenate([real[:, :4], real[::-1][:, 4:]], axis=1)
    assert share(jumps) <= 0.05


def test_growing_shapes_fail() -> None:
    small = demo.Factors(
        shape="disc", colour="blue", radius=demo.RADIUS[0], start=(0.4, 0.5), velocity=(0.07, 0)
    )
    clips = []
    for growth in (0.0, 0.4):
        frames = [
            demo.render_video(
                demo.Factors(**{**vars(small), "radius": small.radius * (1 + growth * t / 7)}),
                size=32,
                num_frames=t + 1,
            )[t]
            for t in range(8)
        ]
        clips.append(np.stack(frames))
    assert valid_clips(np.stack(clips)).tolist() == [True, False]


def test_report_agrees_with_the_verdict(real: Clips) -> None:
    mixed = np.concatenate([real[:20], real[:20, ::-1], np.zeros_like(real[:20])])
    report = validity_report(mixed)
    assert list(report) == ["valid", *(f"breaks_{rule}" for rule in RULES)]
    assert report["valid"] == pytest.approx(share(mixed))
    assert share(mixed) >= 0.6  # played backwards, a clip is as plausible
    assert all(0 <= value <= 1 for value in report.values())


@pytest.mark.parametrize("shape", [(2, 1, 32, 32, 3), (2, 8, 32, 24, 3), (8, 32, 32, 3)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        valid_clips(np.zeros(shape, dtype=np.uint8))


def _with_background(clips: Clips, other: Clips) -> Clips:
    """`other` where the clips show the shape, the clips' background elsewhere."""
    contrast = np.abs(clips.astype(int) - np.array(demo.BACKGROUND)).max(axis=-1, keepdims=True)
    return np.where(contrast > 60, other, clips).astype(np.uint8)


def _always_touching(one: Clips, other: Clips) -> NDArray[np.bool_]:
    """Whether two clips' shapes meet or nearly meet in every frame."""
    masks = [
        np.abs(c.astype(int) - np.array(demo.BACKGROUND)).max(axis=-1) > 40 for c in (one, other)
    ]
    near = np.ones((1, 1, 5, 5), dtype=bool)
    met = ndimage.binary_dilation(masks[0], structure=near) & masks[1]
    return np.asarray(met.any(axis=(2, 3)).all(axis=1))
