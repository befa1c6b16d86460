"""Videos as files and pictures that people look at: MP4, GIF, contact sheets.

Legend: N clips, T frames, H height, W width, C colour channels (RGB). All pixels are uint8.
"""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from distgan import storage
from distgan.data.clip_formats import REPRODUCIBLE_X264

_PAPER = (250, 250, 250)
_INK = (40, 40, 40)
_GAP = 4  # pixels between the parts of a picture
_PALETTE_PIXELS = 50_000  # pixels that a GIF's palette is made from; all would take minutes
_STRIP_FRAME = 64  # least pixels of a frame in a film strip


def encode_mp4(
    video_THWC: NDArray[np.uint8],
    frame_rate_hz: float,
    *,
    crf: int = 18,
    pixel_format: str = "yuv420p",
) -> bytes:
    """An H.264 file of uint8 RGB frames (T, H, W, 3); the same bytes for the same frames.

    Odd heights and widths are padded with their last row and column, as 4:2:0 needs even ones.

    Args:
        crf: x264's quality, 0 (exact in YUV) to 51; 18 looks lossless.
        pixel_format: yuv420p plays everywhere, yuv444p keeps the colours' full resolution.

    Raises:
        ValueError: the array is not such a video.
    """
    _check(video_THWC, "THW3")
    height, width = video_THWC.shape[1:3]
    padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    frames = np.ascontiguousarray(np.pad(video_THWC, padding, mode="edge"))
    options = {"crf": str(crf), "preset": "medium", **REPRODUCIBLE_X264}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(frame_rate_hz).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_mp4(
    path: str, video_THWC: NDArray[np.uint8], frame_rate_hz: float, *, least_size: int = 0
) -> None:
    """Writes `encode_mp4`'s file (4:2:0), enlarged by a whole factor to at least `least_size`."""
    storage.write_bytes(path, encode_mp4(enlarge(video_THWC, least_size), frame_rate_hz))


def encode_gif(video_THWC: NDArray[np.uint8], frame_rate_hz: float) -> bytes:
    """An endless animated GIF of uint8 RGB frames (T, H, W, 3), one palette for all frames.

    GIF counts time in hundredths of a second, and players slow down below two: 50 Hz at most.
    """
    _check(video_THWC, "THW3")
    palette = _palette(video_THWC)  # one for all: a palette a frame makes flat colours flicker
    frames = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in video_THWC
    ]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=max(20, round(100 / frame_rate_hz) * 10),
        loop=0,
        optimize=False,
        disposal=1,
    )
    return buffer.getvalue()


def _palette(video_THWC: NDArray[np.uint8]) -> Image.Image:
    """256 colours that cover the video's."""
    pixels = video_THWC.reshape(1, -1, 3)
    step = -(-pixels.shape[1] // _PALETTE_PIXELS) | 1  # odd: out of step with the rows
    sample = pixels[:, ::step]
    # Maximum coverage: median cut spends the palette on a noisy background and turns red to pink.
    return Image.fromarray(np.ascontiguousarray(sample)).quantize(
        256, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
    )


def write_gif(
    path: str, video: NDArray[np.uint8], frame_rate_hz: float, *, least_size: int = 0
) -> None:
    """Writes a GIF of a video (T, H, W, 3), or of clips (N, T, H, W, 3) laid out by `grid`.

    Enlarged by a whole factor to at least `least_size` pixels in height.
    """
    video_THWC = grid(video) if video.ndim == 5 else video
    storage.write_bytes(path, encode_gif(enlarge(video_THWC, least_size), frame_rate_hz))


def grid(clips_NTHWC: NDArray[np.uint8], *, columns: int = 0, gap: int = 2) -> NDArray[np.uint8]:
    """Clips (N, T, H, W, 3) beside each other in one video (T, H', W', 3), row by row.

    Args:
        columns: clips a row; 0 makes the grid about square.
        gap: pixels between clips, left black like the places that stay free.
    """
    _check(clips_NTHWC, "NTHW3")
    num_clips, num_frames, height, width = clips_NTHWC.shape[:4]
    columns = columns or int(np.ceil(np.sqrt(num_clips)))
    rows = -(-num_clips // columns)
    shape = (num_frames, rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    canvas = np.zeros(shape, dtype=np.uint8)
    for place, clip in enumerate(clips_NTHWC):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = clip
    return canvas


def enlarge(video: NDArray[np.uint8], least_size: int) -> NDArray[np.uint8]:
    """Repeats pixels of (..., H, W, 3) by the least whole factor that makes H >= least_size."""
    factor = max(1, -(-least_size // video.shape[-3]))
    return video.repeat(factor, axis=-3).repeat(factor, axis=-2)


def contact_sheet(rows: Sequence[tuple[str, NDArray[np.uint8]]], path: str) -> None:
    """Writes a PNG of labelled rows, each of clips (N, T, H, W, 3) as film strips side by side.

    Time runs to the right within a strip. Small clips are enlarged by repeating pixels.

    Raises:
        ValueError: no rows, or a row is not such an array.
    """
    if not rows:
        raise ValueError("contact sheet: no rows")
    bands = [_labelled(label, _strips(clips)) for label, clips in rows]
    width = max(band.width for band in bands) + 2 * _GAP
    height = sum(band.height + _GAP for band in bands) + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = _GAP
    for band in bands:
        sheet.paste(band, (_GAP, top))
        top += band.height + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    storage.write_bytes(path, buffer.getvalue())


def _strips(clips_NTHWC: NDArray[np.uint8], columns: int = 2) -> NDArray[np.uint8]:
    """Film strips of the clips, `columns` beside each other: (H', W', 3) on paper."""
    _check(clips_NTHWC, "NTHW3")
    clips = enlarge(clips_NTHWC, _STRIP_FRAME)
    num_clips, num_frames, height, width = clips.shape[:4]
    columns = min(columns, num_clips)
    lines = -(-num_clips // columns)
    strip_width = num_frames * (width + 1) - 1  # frames stand a thin line apart
    step_y, step_x = height + _GAP, strip_width + 4 * _GAP
    shape = (lines * step_y - _GAP, columns * step_x - 4 * _GAP, 3)
    canvas = np.broadcast_to(np.array(_PAPER, dtype=np.uint8), shape).copy()
    for place, clip in enumerate(clips):
        top, left = place // columns * step_y, place % columns * step_x
        for number, frame in enumerate(clip):
            x = left + number * (width + 1)
            canvas[top : top + height, x : x + width] = frame
    return canvas


def _labelled(label: str, picture_HWC: NDArray[np.uint8]) -> Image.Image:
    """The picture with its label above."""
    font = ImageFont.load_default(size=15)
    heading = 24
    height, width = picture_HWC.shape[:2]
    left, _, right, _ = font.getbbox(label)
    band = Image.new("RGB", (max(width, int(right - left) + 4), height + heading), _PAPER)
    ImageDraw.Draw(band).text((2, 2), label, fill=_INK, font=font)
    band.paste(Image.fromarray(picture_HWC), (0, heading))
    return band


def _check(array: NDArray[np.uint8], layout: str) -> None:
    fits = array.dtype == np.uint8 and array.ndim == len(layout) and array.shape[-1] == 3
    if not fits or array.size == 0:
        raise ValueError(f"expected uint8 {layout}, not {array.dtype} {array.shape}")
