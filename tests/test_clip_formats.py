"""Clip formats: exactness, reproducible bytes, reading some frames, damage."""

import io
import os
import subprocess
import sys

import av
import numpy as np
import pytest

from distgan.data.clip_formats import ClipFormat, decode, encode
from tests.video_makers import numbered, psnr, read_number, textured

FORMATS: tuple[ClipFormat, ...] = ("mp4", "npy")
CLIP = textured(20, 64, 64)


def test_npy_is_exact_and_mp4_nearly() -> None:
    assert np.array_equal(decode(encode(CLIP, 8, "npy"), "npy"), CLIP)
    assert psnr(decode(encode(CLIP, 8, "mp4"), "mp4"), CLIP) > 40


@pytest.mark.parametrize("clip_format", FORMATS)
@pytest.mark.parametrize("rate_hz", [8.0, 29.97, 240.0])
@pytest.mark.parametrize("indices", [[0], [3, 1, 1], [37, 18], list(range(0, 40, 3)), [16], [15]])
def test_chosen_frames_equal_those_of_the_whole(
    clip_format: ClipFormat, rate_hz: float, indices: list[int]
) -> None:
    data = encode(numbered(40), rate_hz, clip_format)
    chosen = decode(data, clip_format, indices)
    assert [read_number(frame) for frame in chosen] == indices
    assert np.array_equal(chosen, decode(data, clip_format)[indices])


@pytest.mark.parametrize("clip_format", FORMATS)
def test_odd_sizes_and_single_frames(clip_format: ClipFormat) -> None:
    clip = textured(1, 33, 17)
    assert decode(encode(clip, 8, clip_format), clip_format).shape == (1, 17, 33, 3)


@pytest.mark.parametrize("clip_format", FORMATS)
def test_frames_that_are_not_there(clip_format: ClipFormat) -> None:
    data = encode(CLIP, 8, clip_format)
    for indices in ([20], [-1], [0, 99]):
        with pytest.raises(ValueError, match="frame"):
            decode(data, clip_format, indices)


@pytest.mark.parametrize("clip_format", FORMATS)
def test_damage_raises_value_error(clip_format: ClipFormat) -> None:
    data = encode(CLIP, 8, clip_format)
    for broken in (b"", data[:7], data[: len(data) // 2], data[:-300], b"x" * 100):
        with pytest.raises(ValueError):
            decode(broken, clip_format)


def test_a_pickle_in_npy_is_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="object"):
        decode(buffer.getvalue(), "npy")


def test_a_header_that_promises_too_much_allocates_nothing() -> None:
    data = encode(CLIP[:1], 8, "npy")
    forged = data.replace(b"(1, 64, 64, 3)", b"(9**9,4,4, 3)".ljust(14))
    with pytest.raises(ValueError):
        decode(forged, "npy")
    forged = data.replace(b"(1, 64, 64, 3), }", b"(9,999,999,3), } ")
    with pytest.raises(ValueError, match="bytes of pixels"):
        decode(forged, "npy")


def test_encode_refuses_other_arrays() -> None:
    with pytest.raises(ValueError, match="THW3"):
        encode(CLIP.astype(np.float32), 8, "npy")  # type: ignore[arg-type]


def test_decoding_stops_after_the_last_frame_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(numbered(200), 8, "mp4")
    good = decode(data, "mp4", [2])
    # Damage far behind the wanted frame must not be met; behind it, it must.
    broken = bytearray(data)
    at = data.index(b"mdat") + int(0.8 * (data.index(b"moov") - data.index(b"mdat")))
    broken[at : at + 200] = os.urandom(200)
    assert np.array_equal(decode(bytes(broken), "mp4", [2]), good)
    with pytest.raises(ValueError):
        decode(bytes(broken), "mp4")


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("distgan.data.clip_formats", "encode(c, 8, 'mp4')"),
        ("distgan.pictures", "encode_mp4(c, 8)"),
    ],
)
def test_mp4_bytes_do_not_depend_on_what_memory_held(module: str, call: str) -> None:
    """Uninitialised reads inside the encoder show up when fresh memory is filled."""
    program = (
        "import hashlib\n"
        f"from {module} import {call.partition('(')[0]}\n"
        "from tests.video_makers import textured\n"
        "clips = [textured(16, 64, 64, seed=s) for s in range(6)]\n"
        f"print(hashlib.sha256(b''.join({call} for c in clips)).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "MALLOC_PERTURB_": fill, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for fill in ("1", "200")
    }
    assert len(digests) == 1


def test_mp4_is_444() -> None:
    with av.open(io.BytesIO(encode(CLIP, 8, "mp4")), mode="r") as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv444p"
