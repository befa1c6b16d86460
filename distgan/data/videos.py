"""Finds videos in nested folders, opens them safely and decodes their frames within limits.

A video is untrusted input: only plain container formats are opened (no playlists, which name
further files), and pixels, frames, seconds and CPU time are bounded.
"""

import contextlib
import os
import resource
import stat
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import av

from distgan.config import LimitsConfig
from distgan.errors import UserError

_CONTAINER_EXTENSIONS = (
    "3g2 3gp asf avi dv f4v flv gif h264 hevc ivf m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf nut "
    "ogg ogm ogv rm rmvb ts vob webm wmv y4m"
)
EXTENSIONS = frozenset(f".{name}" for name in _CONTAINER_EXTENSIONS.split())
"""File name endings, in lower case, that are tried as videos."""

_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,gif,nut,mxf,rm,dv,"
    "ivf,h264,hevc,m4v,yuv4mpegpipe"
)
"""FFmpeg's demuxers that may open a file. Those that open further files (hls, concat, dash, imf,
sdp, image2 ...) are left out, whatever a file is named."""

_MOST_STREAMS = 64
"""Of all kinds in one file; each costs memory before a limit on the video's own is looked at."""

_OPENING_BYTES, _OPENING_BYTES_A_PIXEL = 128 * 2**20, 8
"""Memory that opening a file may take: its tables, and frames that FFmpeg decodes to know it."""

_UNPACKED_BYTES, _UNPACKED_TIMES = 16 * 2**20, 2
"""Most bytes of a video's packets: so many, and so many times the file's size."""

_CUT_SHORT_S, _CUT_SHORT_SHARE = 0.5, 0.1
"""A video is cut short if more than both are missing of the length that its container declares."""
_LONGEST_HOLD_S = 1
"""A frame that stands longer than this ends its segment: a gap in the recording, or a slide."""


class DroppedVideoError(Exception):
    """A video that is left out as a whole; `cause` is a key of the manifest's `dropped`."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail


class FoundVideos(NamedTuple):
    paths: list[str]
    """Relative to the folder, with forward slashes, sorted."""
    links_skipped: int
    """Links to folders, and links to files outside the folder."""
    others_skipped: int
    """Files with other endings."""


class TimedFrame(NamedTuple):
    image: Any
    """An `av.VideoFrame`, in the video's own pixel format and size."""
    time_s: Fraction
    """When it is shown, from the video's own clock, in seconds."""
    starts_segment: bool
    """Whether footage is missing before it: damage, a gap in time, or another frame size."""


def find_videos(folder: str) -> FoundVideos:
    """Regular files below `folder` whose names end like videos, in sorted order.

    Links to files are followed only if they stay inside the folder, links to folders never.

    Raises:
        UserError: `folder` is not a folder that can be read.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise UserError(f"--input {folder!r} is not a folder; name the folder that holds videos")

    def refuse(error: OSError) -> None:
        raise UserError(f"can't read the folder {error.filename!r}: {error.strerror}") from error

    paths: list[str] = []
    links = others = 0
    for place, folders, files in os.walk(root, onerror=refuse):
        links += sum((Path(place) / name).is_symlink() for name in folders)
        for name in files:
            path = Path(place) / name
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                links += 1
            elif path.suffix.lower() in EXTENSIONS and _is_regular(path):
                paths.append(path.relative_to(root).as_posix())
            else:
                others += 1
    return FoundVideos(sorted(paths), links, others)


class VideoReader:
    """One open video: its facts, then its frames.

    Raises:
        DroppedVideoError: the file is no video that FFmpeg reads, or it is over a limit.
    """

    def __init__(self, path: str, limits: LimitsConfig) -> None:
        self._limits = limits
        self._cpu_start_s = time.process_time()
        self.frames_decoded = 0
        self.frames_damaged = 0
        self.is_cut_short = False
        """Known after the last frame: much less came than the container declares."""
        self.rotation = 0
        """Degrees, anticlockwise, that players turn the frames by; known after the first frame."""
        self._container = _open(path, limits)
        try:
            self._stream = self._choose_stream()
            self._check_declared_size(path)
            self._check_packets(path)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @property
    def frame_rate_hz(self) -> Fraction:
        """The container's own statement, or a guess; times come from the frames, not from it."""
        return Fraction(self._stream.guessed_rate or self._stream.average_rate or 25)

    @property
    def sample_aspect(self) -> Fraction:
        """Width of a pixel over its height; 1 where the video doesn't say."""
        return Fraction(self._stream.sample_aspect_ratio or 0) or Fraction(1)

    def frames(self) -> Iterator[TimedFrame]:
        """All frames that decode without damage, in the order in which they are shown.

        Damaged frames are left out up to the next key frame and counted in `frames_damaged`.

        Raises:
            DroppedVideoError: over a limit, or not a single frame decodes.
        """
        first: Fraction | None = None
        previous: TimedFrame | None = None
        gap = False
        for image in self._images():
            self._check_limits(image)
            if image is None or image.is_corrupt:
                self.frames_damaged += image is not None
                gap = True
                continue
            moment = self._time_of(image, previous)
            if previous is not None and moment <= previous.time_s:
                continue  # shown at the same moment as the one before: never seen
            if first is None:
                first, self.rotation = moment, image.rotation
            if moment - first > self._limits.max_seconds:
                raise _over("seconds", f"more than {self._limits.max_seconds:g}")
            gap = gap or (previous is not None and _is_break(previous, image, moment))
            previous = TimedFrame(image, moment, gap)
            yield previous
            gap = False
        if previous is None or first is None:
            raise DroppedVideoError("videos_unreadable", "no frame decodes")
        missing_s = self._declared_s - float(previous.time_s - first + 1 / self.frame_rate_hz)
        self.is_cut_short = missing_s > max(_CUT_SHORT_S, _CUT_SHORT_SHARE * self._declared_s)

    def _images(self) -> Iterator[Any]:
        """Decoded frames; None stands for damage."""
        wait_for_key = False
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                if wait_for_key and packet.size and not packet.is_keyframe:
                    self.frames_damaged += 1
                    continue
                wait_for_key = False
                images = packet.decode()
            except (av.FFmpegError, MemoryError):
                self.frames_damaged += 1
                if packet is None or not packet.size:
                    yield None
                    return
                wait_for_key = True
                images = [None]
            yield from images

    def _choose_stream(self) -> Any:
        stream = self._container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise DroppedVideoError("videos_unreadable", "no video stream")
        if stream.codec_context is None:
            raise DroppedVideoError("videos_unreadable", "no decoder for its video stream")
        # One thread: videos run in parallel, and CPU time stays comparable.
        stream.codec_context.thread_count = 1
        return stream

    def _check_declared_size(self, path: str) -> None:
        limits, stream = self._limits, self._stream
        width, height = stream.codec_context.width, stream.codec_context.height
        if not width * height:  # what FFmpeg says of a frame that was too large for it
            with _open(path, limits, codec_whitelist="none") as container:
                context = container.streams[stream.index].codec_context
                width, height = context.width, context.height
        if width * height > limits.max_pixels:
            raise _over("pixels", f"{width}x{height}")
        if stream.frames > limits.max_frames:
            raise _over("frames", f"{stream.frames}")
        seconds = 0.0
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        elif self._container.duration:
            seconds = self._container.duration / av.time_base
        if seconds > limits.max_seconds:
            raise _over("seconds", f"{seconds:g}")
        self._declared_s = seconds
        # The decoder itself refuses a larger frame later on, before it allocates it.
        stream.codec_context.options = {
            "max_pixels": str(limits.max_pixels),
            "err_detect": "explode",  # else it hides damage behind invented pixels
        }

    def _check_packets(self, path: str) -> None:
        """Counts the packets before one is decoded: a container may say nothing, or lie, and may
        pack its packets."""
        most = 2 * self._limits.max_frames + 1  # an interlaced frame may come in two; an empty one
        most_bytes = _UNPACKED_BYTES + _UNPACKED_TIMES * Path(path).stat().st_size
        count = size = 0
        with _open(path, self._limits) as container, contextlib.suppress(av.FFmpegError):
            for packet in container.demux(container.streams[self._stream.index]):
                count += 1
                size += packet.size
                if count > most:
                    raise _over("frames", f"more than {self._limits.max_frames}")
                if size > most_bytes:
                    raise DroppedVideoError("videos_unreadable", "it unpacks to far more bytes")
                if count % 1024 == 0:
                    self._check_limits(None)

    def _check_limits(self, image: Any) -> None:
        limits = self._limits
        if time.process_time() - self._cpu_start_s > limits.max_cpu_seconds:
            raise _over("cpu_seconds", f"more than {limits.max_cpu_seconds:g}")
        if image is None:
            return
        self.frames_decoded += 1
        if self.frames_decoded > limits.max_frames:
            raise _over("frames", f"more than {limits.max_frames}")
        if image.width * image.height > limits.max_pixels:
            raise _over("pixels", f"{image.width}x{image.height}")

    def _time_of(self, image: Any, previous: TimedFrame | None) -> Fraction:
        if image.pts is not None:
            return Fraction(image.pts * image.time_base)
        # Raw streams carry no times.
        return Fraction(0) if previous is None else previous.time_s + 1 / self.frame_rate_hz


def _open(path: str, limits: LimitsConfig, **more: str) -> Any:
    """Raises `DroppedVideoError` for what FFmpeg doesn't read, or not within the limits."""
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _DEMUXERS,
        "max_streams": str(_MOST_STREAMS),
        "max_pixels": str(limits.max_pixels),  # FFmpeg decodes frames to find out what they are
        **more,
    }
    url = "file:" + str(Path(path).resolve())  # never read as another one, whatever the name
    try:
        with _memory_limited(_OPENING_BYTES + _OPENING_BYTES_A_PIXEL * limits.max_pixels):
            return av.open(url, mode="r", options=options, metadata_errors="ignore")
    except (av.FFmpegError, OSError, MemoryError, ValueError) as error:
        raise DroppedVideoError("videos_unreadable", _reason(error)) from error


@contextlib.contextmanager
def _memory_limited(more_bytes: int) -> Iterator[None]:
    """Lets this process allocate only so much more while inside, where Linux keeps the limit:
    headers may be packed, and claim any size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held = _data_bytes()
    limit = held + more_bytes
    if not held or (soft != resource.RLIM_INFINITY and soft < limit):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """Memory of this process's own that counts for the limit; 0 where the system doesn't say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return 1024 * int(line.split()[1])
    return 0


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _is_break(previous: TimedFrame, image: Any, moment: Fraction) -> bool:
    before = previous.image
    return moment - previous.time_s > _LONGEST_HOLD_S or (
        (before.width, before.height, before.format.name)
        != (image.width, image.height, image.format.name)
    )


def _over(limit: str, found: str) -> DroppedVideoError:
    return DroppedVideoError(f"videos_over_max_{limit}", f"{found} {limit.replace('_', ' ')}")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error) or type(error).__name__
