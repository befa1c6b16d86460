"""Storage formats of clips: size against decode speed and loss.

    python -m benchmarks clip_formats [--input FOLDER] [--resolutions 64 128]

One process, one thread, clips of 16 frames, every fourth frame of the video. The lines marked
`*` are what `prepare.clip_format` offers.
"""

import argparse
import io
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from benchmarks._clips import Pixels, mean, psnr, runs_of_frames
from distgan.data import clip_formats
from distgan.data.formatting import Formatter


class Candidate(NamedTuple):
    name: str
    encode: Callable[[Pixels], Any]
    decode: Callable[[Any], Pixels]


def main(argv: list[str]) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks clip_formats")
    parser.add_argument("--input", default="", help="folder of videos; without it, synthetic ones")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--seconds", type=float, default=1.0, help="time per line")
    args = parser.parse_args(argv)
    runs = runs_of_frames(args.input, 16, 4)
    for resolution in args.resolutions:
        formatter = Formatter(resolution, "crop", Fraction(1))
        clips = [np.stack([formatter(image) for image in run]) for run in runs]
        print(f"\n{len(clips)} clips of 16 frames of {resolution}x{resolution}\n")
        print("| format | kB a clip | decoded clips/s | encoded clips/s | PSNR dB |")
        print("|---|---|---|---|---|")
        for candidate in candidates():
            print(measure(candidate, clips, args.seconds), flush=True)


def measure(candidate: Candidate, clips: list[Pixels], seconds: float) -> str:
    """One line of the table."""
    start = time.perf_counter()
    coded = [candidate.encode(clip) for clip in clips]
    encode_rate = len(clips) / (time.perf_counter() - start)
    decoded = [candidate.decode(data) for data in coded]
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for data in coded:
            candidate.decode(data)
        count += len(coded)
    decode_rate = count / (time.perf_counter() - start)
    size = mean([_size(data) for data in coded]) / 1e3
    loss = mean([psnr(a, b) for a, b in zip(clips, decoded, strict=True)])
    shown = "exact" if loss == 99 else f"{loss:.1f}"
    return f"| {candidate.name} | {size:.1f} | {decode_rate:.0f} | {encode_rate:.0f} | {shown} |"


def candidates() -> list[Candidate]:
    """All formats that are compared."""
    formats: tuple[clip_formats.ClipFormat, ...] = ("npy", "mp4")
    shipped = [
        Candidate(
            f"{name} *",
            partial(clip_formats.encode, frame_rate_hz=8, clip_format=name),
            partial(clip_formats.decode, clip_format=name),
        )
        for name in formats
    ]
    fast = {"tune": "fastdecode"}
    return [
        *shipped,
        *(
            _h264(f"h264 4:4:4 crf {crf}", "yuv444p", {"crf": str(crf), **fast})
            for crf in (8, 16, 20)
        ),
        _h264("h264 4:4:4 crf 12, no fastdecode", "yuv444p", {"crf": "12"}),
        _h264("h264 4:4:4 crf 12, key frames only", "yuv444p", {"crf": "12", "g": "1", **fast}),
        *(_h264(f"h264 4:2:0 crf {crf}", "yuv420p", {"crf": str(crf), **fast}) for crf in (12, 18)),
        _h264("h264 rgb lossless", "rgb24", {"crf": "0"}, codec="libx264rgb"),
        *(_images(f"jpeg {quality}", "JPEG", quality=quality) for quality in (90, 95)),
        _images("png", "PNG"),
    ]


def _h264(
    name: str, pixel_format: str, options: dict[str, str], codec: str = "libx264"
) -> Candidate:
    def encode(clip: Pixels) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream: Any = container.add_stream(codec, rate=8)
            stream.height, stream.width = clip.shape[1:3]
            stream.pix_fmt, stream.codec_context.thread_count = pixel_format, 1
            stream.options = {"preset": "medium", "g": "16", "x264-params": "asm=SSE2", **options}
            for pixels in clip:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        return buffer.getvalue()

    return Candidate(name, encode, lambda data: clip_formats.decode(data, "mp4"))


def _images(name: str, file_format: str, **options: Any) -> Candidate:
    def encode(clip: Pixels) -> list[bytes]:
        coded = []
        for pixels in clip:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, file_format, **options)
            coded.append(buffer.getvalue())
        return coded

    def decode(coded: list[bytes]) -> Pixels:
        return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in coded])

    return Candidate(f"16 x {name}", encode, decode)


def _size(data: Any) -> float:
    return float(sum(map(len, data)) if isinstance(data, list) else len(data))
