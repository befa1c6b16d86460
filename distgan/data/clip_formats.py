"""Clips to bytes and back: raw uint8 (`npy`), or H.264 4:4:4 (`mp4`).

The codec's settings follow from `python -m benchmarks clip_formats`. T frames, H height, W width,
3 red, green, blue, 0 to 255.
"""

import functools
import io
import math
import platform
import tokenize
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from distgan.buffers import Bytes

Pixels = NDArray[np.uint8]
ClipFormat = Literal["mp4", "npy"]

MOST_BYTES, MOST_PIXELS = 2**31, 2**25
"""Of a clip, and of a frame: a file of some kilobytes may claim any number of them."""

GOP = 16
"""Frames from one key frame of an mp4 clip to the next."""

# x264's newer assembly reads uninitialised memory: a clip's bytes then vary from run to run (seen
# by filling fresh memory with MALLOC_PERTURB_). With SSE2 at most it gives the bytes of plain C.
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
REPRODUCIBLE_X264 = {"x264-params": "asm=SSE2" if _IS_X86 else "no-asm=1", "threads": "1"}
"""Encoder options that make the bytes a function of the frames alone."""

_H264_OPTIONS = {
    "crf": "12",
    "preset": "medium",
    "tune": "fastdecode",  # decodes up to half as fast again, for 3 to 8% more size
    "g": str(GOP),
    **REPRODUCIBLE_X264,
}

_reformatter = VideoReformatter()  # one for all clips: a new one per frame costs more than decoding


def encode(frames_THW3: Pixels, frame_rate_hz: float, clip_format: ClipFormat) -> bytes:
    """The bytes of a clip member; the same frames always give the same bytes.

    Args:
        frames_THW3: uint8 RGB; for mp4 with at least 2 x 2 pixels.
        frame_rate_hz: playing speed that an mp4 states; npy has no place for it.
        clip_format: `mp4` loses a little (about 43 dB), `npy` nothing.
    """
    if frames_THW3.dtype != np.uint8 or frames_THW3.ndim != 4 or frames_THW3.shape[3] != 3:
        raise ValueError(f"not a uint8 THW3 clip: {frames_THW3.dtype} {frames_THW3.shape}")
    if clip_format == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(frames_THW3), allow_pickle=False)
        return buffer.getvalue()
    return _encode_mp4(frames_THW3, frame_rate_hz)


def decode(
    data: Bytes,
    clip_format: ClipFormat,
    indices: Sequence[int] | None = None,
    out: Pixels | None = None,
) -> Pixels:
    """Frames of a clip, (T, H, W, 3) uint8: all of them, or those of `indices` in that order.

    Args:
        out: where to put them, of their shape; spares a copy.

    Raises:
        ValueError: the data is damaged, or has no frame of such an index, or not of `out`'s shape.
    """
    if indices and min(indices) < 0:
        raise ValueError(f"negative frame index in {list(indices)}")
    if clip_format == "npy":
        clip = _frames_of(_decode_npy(data), indices)
        if out is None:
            return clip
        if clip.shape != out.shape:
            raise ValueError(f"clip of shape {clip.shape} instead of {out.shape}")
        out[:] = clip
        return out
    try:
        return _decode_mp4(data, indices, out)
    # What FFmpeg says of damage is of many kinds, and forged times are no numbers for `Fraction`.
    except (av.FFmpegError, OSError, MemoryError, ArithmeticError, TypeError) as error:
        raise ValueError(f"damaged mp4 clip: {error}") from error


def _frames_of(clip: Pixels, indices: Sequence[int] | None) -> Pixels:
    if indices is None:
        return clip
    if indices and max(indices) >= len(clip):
        raise ValueError(f"clip of {len(clip)} frames has no frame {max(indices)}")
    if isinstance(indices, range) and indices.step > 0:
        return clip[indices.start : indices.stop : indices.step]  # nothing is copied
    return clip[np.asarray(indices, dtype=np.intp)]


def _encode_mp4(frames_THW3: Pixels, frame_rate_hz: float) -> bytes:
    buffer = io.BytesIO()
    rate = Fraction(frame_rate_hz).limit_denominator(10_000)
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames_THW3.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.options = _H264_OPTIONS
        stream.codec_context.thread_count = 1  # x264's bytes depend on the number of threads
        for index, pixels in enumerate(frames_THW3):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            image = _reformatter.reformat(image, format="yuv444p", threads=1)
            image.pts, image.time_base = index, 1 / rate
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return buffer.getvalue()


def _coded_pixels(pixels: int) -> int:
    """At most so many are coded for a square frame of so many: H.264 has blocks of 16 x 16."""
    return 4 * pixels + 4096


def _decode_mp4(data: Bytes, indices: Sequence[int] | None, out: Pixels | None) -> Pixels:
    most = MOST_BYTES if out is None else out.nbytes
    num_wanted = len(indices) if indices is not None else 1
    most_pixels = min(MOST_PIXELS, most // (3 * max(num_wanted, 1)))
    options = {"max_pixels": str(_coded_pixels(most_pixels)), "max_streams": "8"}
    with av.open(io.BytesIO(data), mode="r", format="mp4", options=options) as container:
        stream: Any = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError("damaged mp4 clip: no video stream that can be decoded")
        stream.codec_context.thread_count = 1
        rate = stream.average_rate
        count = stream.frames if indices is None else num_wanted
        pixels_a_frame = stream.codec_context.width * stream.codec_context.height
        if not count or rate is None:
            raise ValueError("mp4 clip: no frame asked for, or none declared")
        if 3 * count * pixels_a_frame > most or not 0 < pixels_a_frame <= most_pixels:
            raise ValueError(f"mp4 clip of {count} frames of {pixels_a_frame} pixels: too large")
        most_coded = _coded_pixels(min(most_pixels, most // (3 * count)))
        stream.codec_context.options = {"max_pixels": str(most_coded)}
        places: dict[int, list[int]] = {}
        for place, index in enumerate(range(count) if indices is None else indices):
            places.setdefault(index, []).append(place)
        frames_a_tick: Fraction = stream.time_base * rate
        over, under = frames_a_tick.numerator, frames_a_tick.denominator
        if min(places) >= GOP:
            container.seek(int(min(places) / frames_a_tick), stream=stream, backward=True)
        for image in container.decode(stream):
            ticks = image.pts
            # The nearest whole number; fractions themselves are slow.
            index = (2 * ticks * over + under) // (2 * under) if ticks is not None else -1
            here = places.pop(index, None)
            if here is None:
                continue
            if image.is_corrupt:
                raise ValueError(f"damaged mp4 clip: frame {index} is corrupt")
            pixels = _rgb(image)
            if out is None:
                out = np.empty((count, *pixels.shape), dtype=np.uint8)
            if pixels.shape != out.shape[1:]:
                raise ValueError(f"frame of shape {pixels.shape} instead of {out.shape[1:]}")
            for place in here:
                out[place] = pixels
            if not places:
                break  # nothing after the last wanted frame is decoded
    if places or out is None:
        raise ValueError(f"mp4 clip has no frame {min(places)}: damaged or shorter than asked for")
    return out


def _rgb(image: av.VideoFrame) -> Pixels:
    """(H, W, 3), valid as long as nothing else is reformatted."""
    plane: Any = _reformatter.reformat(image, format="rgb24", threads=1).planes[0]
    height, width, line = plane.height, plane.width, plane.line_size
    rows = np.frombuffer(plane, dtype=np.uint8)
    if line != 3 * width:
        rows = rows.reshape(height, line)[:, : 3 * width]
    return rows.reshape(height, width, 3)


def _decode_npy(data: Bytes) -> Pixels:
    """A read-only view of the pixels; the header is checked before anything is allocated."""
    view = memoryview(data)
    length = 10 + int.from_bytes(view[8:10], "little")
    shape, fortran_order, dtype = _npy_header(bytes(view[:length]))
    pixels = view[length:]
    if dtype != np.uint8 or fortran_order or len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"npy clip holds {dtype} {shape}, not uint8 THW3")
    if len(pixels) != math.prod(shape):
        raise ValueError(f"npy clip of shape {shape} has {len(pixels)} bytes of pixels: damaged")
    return np.frombuffer(pixels, dtype=np.uint8).reshape(shape)


@functools.lru_cache(maxsize=64)  # the clips of a data set have one and the same; parsing is slow
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether in Fortran's order, type) from a file's first bytes."""
    file = io.BytesIO(header)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("npy clip of an unknown version")
        return np.lib.format.read_array_header_1_0(file)
    except (SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"damaged npy header: {error}") from error
