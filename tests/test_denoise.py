"""Denoising filters: noise of known strength goes down, clean detail stays, frames keep order."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from distgan.config import DenoiseConfig, LimitsConfig
from distgan.data.denoise import FILTERS, check_denoise, denoise
from distgan.data.formatting import Formatter
from distgan.data.videos import VideoReader
from distgan.errors import UserError
from tests.video_makers import Pixels, psnr, sample_videos, textured, write_video

KINDS = sorted(FILTERS)


def config(kind: str, strength: float = 1.0) -> DenoiseConfig:
    return DenoiseConfig.model_validate({"kind": kind, "strength": strength})


def filtered(planes: Pixels, kind: str, strength: float = 1.0) -> Pixels:
    """Runs yuv444p frames (T, 3, H, W) through a filter."""
    images = (av.VideoFrame.from_ndarray(frame, format="yuv444p") for frame in planes)
    out = denoise(enumerate(images), config(kind, strength))
    return np.stack([image.to_ndarray() for _, image in out])


def noisy(planes: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sigma, planes.shape)
    return np.clip(planes + noise + 0.5, 0, 255).astype(np.uint8)


def synthetic_planes() -> Pixels:
    frames = textured(9, 160, 128)
    frames[:] = frames[:1] // 2 + frames // 2  # half of the texture stands still
    return np.stack(
        [
            av.VideoFrame.from_ndarray(f, format="rgb24").reformat(format="yuv444p").to_ndarray()
            for f in frames
        ]
    )


def real_planes() -> Iterator[tuple[str, Pixels]]:
    paths = sorted(sample_videos().rglob("*.m[kp][v4]"))
    for path in (paths[4], paths[-1]):
        planes = []
        with VideoReader(str(path), LimitsConfig()) as reader:
            for index, frame in enumerate(reader.frames()):
                if index >= 10:
                    planes.append(frame.image.reformat(format="yuv444p").to_ndarray())
                if len(planes) == 5:
                    break
        yield path.name, np.stack(planes)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_goes_down_and_clean_detail_stays(kind: str) -> None:
    clean = synthetic_planes()
    dirty = noisy(clean, 10)
    assert psnr(filtered(dirty, kind), clean) > psnr(dirty, clean) + 1
    assert psnr(filtered(clean, kind), clean) > 35


@pytest.mark.parametrize("kind", KINDS)
def test_noise_on_real_clips_goes_down_and_clean_detail_stays(kind: str) -> None:
    for name, clean in real_planes():
        assert psnr(filtered(clean, kind), clean) > 35, name
        for sigma in (10, 20):
            dirty = noisy(clean, sigma)
            assert psnr(filtered(dirty, kind), clean) > psnr(dirty, clean) + 0.5, (name, sigma)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_is_a_multiple_of_the_default(kind: str) -> None:
    clean = synthetic_planes()[:7]
    change = [np.mean((filtered(clean, kind, s) - clean.astype(float)) ** 2) for s in (0.3, 1, 1.4)]
    assert change[0] <= change[1] <= change[2] and change[0] < change[2]


@pytest.mark.parametrize("kind", ["none", *KINDS])
@pytest.mark.parametrize("count", [0, 1, 2, 11])
def test_as_many_frames_come_out_in_order(kind: str, count: int) -> None:
    images = (
        av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * i, dtype=np.uint8), format="rgb24")
        for i in range(count)
    )
    out = list(denoise(((i, image) for i, image in enumerate(images)), config(kind, 0.5)))
    assert [tag for tag, _ in out] == list(range(count))
    for tag, image in out:
        assert abs(float(image.to_ndarray(format="rgb24").mean()) - 20 * tag) < 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p10le"])
def test_colours_and_range_pass_through(tmp_path: Path, kind: str, pixel_format: str) -> None:
    image = av.VideoFrame.from_ndarray(textured(1, 96, 96)[0] // 8 * 8, format="rgb24")
    image = image.reformat(format=pixel_format, dst_colorspace="ITU709")
    formatter = Formatter(32, "crop", Fraction(1))
    plain = formatter(image)
    ((_, passed),) = denoise([(0, image)], config(kind, 0.2))
    assert psnr(formatter(passed), plain) > 38


def test_too_little_strength_for_nlmeans() -> None:
    filtered(synthetic_planes()[:2], "nlmeans", 0.17)
    with pytest.raises(UserError, match=r"use 0\.167 to 5"):
        check_denoise(config("nlmeans", 0.1))


def test_too_much_strength_names_key_and_remedy() -> None:
    check_denoise(config("none", 10))
    for kind in KINDS:
        most = FILTERS[kind].max_strength
        check_denoise(config(kind, most))
        filtered(synthetic_planes()[:2], kind, most)  # FFmpeg agrees
        if most < 10:
            with pytest.raises(
                UserError, match=rf"prepare.denoise.strength=10 .*{kind}.*another kind"
            ):
                check_denoise(config(kind, 10))


def test_reading_a_real_container_through_every_filter(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", textured(6))
    for kind in KINDS:
        with VideoReader(str(path), LimitsConfig()) as reader:
            pairs = ((frame.time_s, frame.image) for frame in reader.frames())
            times = [time_s for time_s, _ in denoise(pairs, config(kind))]
        assert len(times) == 6 and times == sorted(times)
