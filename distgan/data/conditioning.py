"""Conditioning: a clip becomes (given video, mask of known pixels); tasks differ in these alone."""

from torch import Tensor

from distgan.config import ConditioningConfig


def condition(
    clips_BCTHW: Tensor, config: ConditioningConfig
) -> tuple[Tensor | None, Tensor | None]:
    """What the generator is given of each clip, in [-1, 1], and where its pixels are true (1).

    Shapes (B, 3, T, H, W) and (B, 1, T, H, W); both None for the task `none`. Unknown pixels of
    the given video are 0.
    """
    if config.task == "none":
        return None, None
    known_B1THW = clips_BCTHW.new_zeros((len(clips_BCTHW), 1, *clips_BCTHW.shape[2:]))
    known_B1THW[:, :, : config.context_frames] = 1
    return clips_BCTHW * known_B1THW, known_B1THW


def reads_video(config: ConditioningConfig) -> bool:
    """Whether the task gives the generator a video, so that it needs its encoder."""
    return config.task != "none"
