"""200 small videos of every kind that FFmpeg writes here: python -m tests.legal_clips FOLDER BLOCK

In processes of their own, as an encoder that crashes (one does now and then, on some machines)
takes its process with it, and is not what the tests are about. What is there stays as it is.
"""

import itertools
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.video_makers import textured

NUM_BLOCKS = 4
KINDS = (
    ("libx264", "mp4", "yuv420p"), ("libx264", "mov", "yuv444p"), ("libx264", "mkv", "yuv422p10le"),
    ("libx264", "ts", "yuv420p"), ("libx264", "flv", "yuv420p"), ("libx264", "m4v", "yuv420p"),
    ("libx264", "h264", "yuv420p"), ("libx264rgb", "mkv", "rgb24"), ("libx265", "mp4", "yuv420p"),
    ("libvpx", "webm", "yuv420p"), ("libvpx-vp9", "webm", "yuv420p"),
    ("libsvtav1", "mp4", "yuv420p"), ("mpeg4", "avi", "yuv420p"), ("mpeg4", "mp4", "yuv420p"),
    ("mpeg2video", "mpg", "yuv420p"), ("mpeg2video", "ts", "yuv422p"),
    ("mpeg1video", "mpeg", "yuv420p"), ("mjpeg", "avi", "yuvj420p"), ("mjpeg", "mov", "yuvj444p"),
    ("png", "mov", "rgb24"), ("png", "avi", "rgba"), ("ffv1", "mkv", "yuv420p"),
    ("ffv1", "avi", "gray"), ("huffyuv", "avi", "yuv422p"), ("ffvhuff", "nut", "yuv420p"),
    ("rawvideo", "avi", "bgr24"), ("rawvideo", "nut", "yuv420p"),
    ("gif", "gif", "rgb8"), ("prores_ks", "mov", "yuv422p10le"), ("wmv2", "wmv", "yuv420p"),
    ("wmv1", "asf", "yuv420p"), ("msmpeg4", "avi", "yuv420p"), ("flv", "flv", "yuv420p"),
    ("utvideo", "avi", "yuv420p"), ("qtrle", "mov", "rgb24"),
    ("rawvideo", "y4m", "yuv420p"), ("mpeg2video", "vob", "yuv420p"),
)  # fmt: skip
SIZES = ((64, 48), (98, 50), (16, 96), (128, 128), (46, 34), (320, 180))
RATES = (Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(50))
NUM_CLIPS = 200
CASES = tuple(
    (*kind, size, rate)
    for kind, size, rate in itertools.islice(
        zip(
            itertools.cycle(KINDS),
            itertools.cycle(SIZES),
            itertools.cycle(RATES),
            strict=False,
        ),
        NUM_CLIPS,
    )
)


def _write(
    path: Path, codec: str, pixel_format: str, size: tuple[int, int], rate: Fraction, number: int
) -> None:
    """Eight frames; B-frames, interlaced fields, gaps in time and sound, each in some of them."""
    width, height = size
    if codec == "libsvtav1":
        width, height = max(width, 64), max(height, 64)  # or the encoder crashes
    if codec == "mpeg4":
        rate = Fraction(round(rate))  # its clock is coarse
    if codec in ("mpeg1video", "mpeg2video") or path.suffix in (".flv", ".mxf"):
        rate = RATES[number % 3]
    with av.open(str(path), "w", format="yuv4mpegpipe" if path.suffix == ".y4m" else None) as file:
        stream: Any = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "bf": str(number % 3)}
            if number % 4 == 1 and height % 4 == 0:
                stream.options |= {"x264-params": "interlaced=1:tff=1"}
        if codec == "libsvtav1":
            stream.options = {"preset": "13"}
        if codec in ("libvpx", "libvpx-vp9"):
            stream.options = {"cpu-used": "8", "deadline": "realtime"}
        frames = textured(2, width, height)
        for place in range(8):
            image = av.VideoFrame.from_ndarray(np.roll(frames[place % 2], place, 1), format="rgb24")
            image = image.reformat(format=pixel_format)
            image.pts, image.time_base = place, 1 / rate
            file.mux(stream.encode(image))
        file.mux(stream.encode())


def clips_of(block: int) -> list[tuple[str, str]]:
    """File name and codec of each clip of a block, one of `NUM_BLOCKS`."""
    return [(f"{number}.{ending}", codec) for number, (codec, ending, *_) in _cases(block)]


def _cases(block: int) -> list[tuple[int, tuple[str, str, str, tuple[int, int], Fraction]]]:
    return list(enumerate(CASES))[block::NUM_BLOCKS]


def main() -> None:
    folder, block = Path(sys.argv[1]), int(sys.argv[2])
    for number, (codec, ending, pixel_format, size, rate) in _cases(block):
        path, half = folder / f"{number}.{ending}", folder / f"half.{ending}"
        if not path.exists():
            _write(half, codec, pixel_format, size, rate, number)
            half.rename(path)


if __name__ == "__main__":
    main()
