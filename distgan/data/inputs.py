"""Input videos for a trained generator: formatted as prepare would, one clip a video."""

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distgan.config import Config
from distgan.data.fetching import find_inputs, input_root, local_copy
from distgan.data.prepare_video import ClipSettings, clips_of_video
from distgan.data.videos import DroppedVideoError, VideoReader
from distgan.errors import UserError


def context_clips(folder: str, config: Config, frame_rate_hz: float) -> NDArray[np.uint8]:
    """The first frames of every video below a folder or URL: uint8 (N, T, H, W, 3).

    The first `conditioning.context_frames` frames are the video's, at the frame rate, stride and
    size of training; the others are black.

    Raises:
        UserError: the folder has no video, or one of them can't be used (it says why).
    """
    data, context = config.data, config.conditioning.context_frames
    settings = ClipSettings(
        prepare=config.prepare.model_copy(update={"frame_rate_hz": frame_rate_hz}),
        resolution=data.resolution,
        stored_frames=(context - 1) * data.frame_stride + 1,
    )
    found = find_inputs(folder)
    if not found.paths:
        raise UserError(f"no videos in --input {folder}")
    size = data.resolution
    clips = np.zeros((len(found.paths), data.clip_frames, size, size, 3), np.uint8)
    for clip, path in zip(clips, found.paths, strict=True):
        try:
            with local_copy(input_root(folder), path, settings.prepare.limits) as file:
                clip[:context] = _first_frames(file, path, settings)[:: data.frame_stride]
        except DroppedVideoError as error:
            raise UserError(
                f"--input: {path} can't be used: {error.cause}, {error.detail}"
            ) from error
    return clips


def _first_frames(file: Path, path: str, settings: ClipSettings) -> NDArray[np.uint8]:
    with VideoReader(str(file), settings.prepare.limits) as reader:
        for _, clip in clips_of_video(reader, settings, Counter()):
            return clip
    raise UserError(
        f"--input: {path} has no {settings.stored_frames} moving frames at "
        f"{settings.prepare.frame_rate_hz:g} Hz; give a longer video"
    )
