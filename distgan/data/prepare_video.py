"""The work on one video, in this process or in a worker: its clips and an outcome into a spool.

Clips wait in files, not in memory, until their turn in the shards has come. Workers import neither
torch nor webdataset, so they start fast.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distgan import storage
from distgan.config import PrepareConfig, StorageConfig
from distgan.data.cleaning import cut_clips, is_frozen, split_segments
from distgan.data.clip_formats import encode
from distgan.data.denoise import denoise, is_temporal
from distgan.data.fetching import local_copy, sha256_of_file
from distgan.data.formatting import Formatter, select_by_time
from distgan.data.spooling import SpoolWriter, VideoJob, VideoOutcome, new_spool
from distgan.data.videos import DroppedVideoError, TimedFrame, VideoReader
from distgan.data.workers import end_with_parent

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """All that the clips of a video depend on, besides the video."""

    prepare: PrepareConfig
    resolution: int
    stored_frames: int


class StoppedError(Exception):
    """The work was called off."""


class _Flag(Protocol):
    def is_set(self) -> bool: ...


_called_off: _Flag | None = None


def start_worker(called_off: _Flag, options: StorageConfig) -> None:
    """Initialises a worker process, which stops soon after the parent sets `called_off` or ends."""
    end_with_parent()
    storage.configure(options)
    global _called_off  # a worker's initializer has no other way to hand something to its calls
    _called_off = called_off


def prepare_video(job: VideoJob, settings: ClipSettings) -> None:
    """Works on one video; `job.spool` is there when all of it is done. Doing it again is harmless.

    Raises:
        DistganError: the video lies on object storage and can't be fetched.
        OSError: there is no room for its clips.
    """
    with new_spool(job.spool) as spool, contextlib.ExitStack() as stack:
        try:
            limits = settings.prepare.limits
            source = stack.enter_context(local_copy(job.root, job.path, limits, _room_of(job)))
            size, digest = source.stat().st_size, sha256_of_file(source)
        except DroppedVideoError as error:
            spool.finish(_dropped(job, error.cause, error.detail))
            return
        except OSError as error:
            if not storage.is_local(job.root) and not isinstance(error, FileNotFoundError):
                raise  # the disk is full: no fault of the video's
            spool.finish(_dropped(job, "videos_unreadable", str(error.strerror)))
            return
        spool.finish(_prepare_file(job, source, settings, size, digest, spool))


def _room_of(job: VideoJob) -> str:
    """Where a fetched video goes: beside a local spool, where there is room for it."""
    return str(Path(job.spool).parent) if storage.is_local(job.spool) else ""


def _dropped(job: VideoJob, cause: str, detail: str) -> VideoOutcome:
    return VideoOutcome(path=job.path, bytes=0, sha256="", cause=cause, detail=detail)


def _prepare_file(
    job: VideoJob, source: Path, settings: ClipSettings, size: int, digest: str, spool: SpoolWriter
) -> VideoOutcome:
    counts: Counter[str] = Counter()
    cause = detail = ""
    try:
        with VideoReader(str(source), settings.prepare.limits) as reader:
            _spool_clips(job, reader, settings, counts, spool)
            counts["frames_decoded"] = reader.frames_decoded
            counts["frames_damaged"] = reader.frames_damaged
            counts["videos_cut_short"] = int(reader.is_cut_short)
        if not counts["clips"]:
            cause, detail = _cause_of_nothing(counts, settings.stored_frames)
    except DroppedVideoError as error:
        cause, detail = error.cause, error.detail
        counts.clear()
        spool.discard()
    return VideoOutcome(
        path=job.path, bytes=size, sha256=digest, cause=cause, detail=detail, counts=+counts
    )


def _key(job: VideoJob, number: int) -> str:
    return f"v{job.number:05d}-c{number:04d}"


def _spool_clips(
    job: VideoJob,
    reader: VideoReader,
    settings: ClipSettings,
    counts: Counter[str],
    spool: SpoolWriter,
) -> None:
    rate_hz = settings.prepare.frame_rate_hz or float(reader.frame_rate_hz)
    clip_format = settings.prepare.clip_format
    for start_s, clip in clips_of_video(reader, settings, counts):
        facts = {
            "source": job.path.encode(errors="replace").decode(),
            "start_s": round(float(start_s), 6),
            "frame_rate_hz": rate_hz,
            "frames": len(clip),
        }
        text = json.dumps(facts, ensure_ascii=False).encode()
        spool.add(_key(job, counts["clips"]), text, encode(clip, rate_hz, clip_format), clip_format)
        counts["clips"] += 1


def clips_of_video(
    reader: VideoReader, settings: ClipSettings, counts: Counter[str]
) -> Iterator[tuple[Fraction, Pixels]]:
    """The kept clips of a video: (start in seconds, THW3 pixels)."""
    config = settings.prepare
    formatter = Formatter(settings.resolution, config.fit, reader.sample_aspect)
    step = config.clip_step or settings.stored_frames
    frames = _until_called_off(reader.frames())
    for segment in split_segments(frames, config.clean, counts):
        chosen = _count_frames(_choose_and_denoise(segment, config), counts)
        pixels = ((moment, formatter(image, reader.rotation)) for moment, image in chosen)
        found = 0
        for start_s, clip in cut_clips(pixels, settings.stored_frames, step):
            found += 1
            if is_frozen(clip, config.clean.frozen_difference):
                counts["clips_frozen"] += 1
            else:
                yield start_s, clip
        counts["segments_too_short"] += not found


def _choose_and_denoise(
    segment: Iterator[TimedFrame], config: PrepareConfig
) -> Iterator[tuple[Fraction, Any]]:
    """Frames at the stored rate, denoised: (time in seconds, `av.VideoFrame`)."""
    if is_temporal(config.denoise):
        # Neighbours at the video's own rate are more alike than those at the stored rate.
        filtered = denoise(((frame, frame.image) for frame in segment), config.denoise)
        whole = (frame._replace(image=image) for frame, image in filtered)
        for moment, frame in select_by_time(whole, config.frame_rate_hz):
            yield moment, frame.image
    else:
        chosen = select_by_time(segment, config.frame_rate_hz)
        yield from denoise(((moment, frame.image) for moment, frame in chosen), config.denoise)


def _count_frames(
    frames: Iterator[tuple[Fraction, Any]], counts: Counter[str]
) -> Iterator[tuple[Fraction, Any]]:
    for frame in frames:
        counts["frames_chosen"] += 1
        yield frame


def _until_called_off(frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
    is_called_off: Callable[[], bool] = _called_off.is_set if _called_off else lambda: False
    for frame in frames:
        if is_called_off():
            raise StoppedError
        yield frame


def _cause_of_nothing(counts: Counter[str], stored_frames: int) -> tuple[str, str]:
    """Why a video that decodes gave no clip: (cause, detail)."""
    if counts["clips_frozen"]:
        return "videos_frozen", f"{counts['clips_frozen']} clips, all frozen"
    chosen, needed = counts["frames_chosen"], f"a clip needs {stored_frames}"
    if not chosen and counts["frames_black"]:
        return "videos_black", f"{counts['frames_black']} frames, all black"
    if chosen >= stored_frames:
        pieces = counts["segments"]
        return "videos_in_short_pieces", f"{chosen} frames in {pieces} pieces; {needed}"
    return "videos_too_short", f"{chosen} frames at the stored frame rate; {needed}"
