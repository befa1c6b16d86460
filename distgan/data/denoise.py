"""FFmpeg's denoising filters through PyAV, before scaling.

Before scaling measures better than after it: on clean clips scaled to 64 pixels nlmeans keeps
46 dB against 33 dB, and of noise of deviation 10 it leaves 39.3 dB against 32.9 dB.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import av

from distgan.config import DenoiseConfig
from distgan.errors import UserError

Tag = TypeVar("Tag")


@dataclass(frozen=True, kw_only=True)
class FilterDefaults:
    """How one kind is set up; defaults are tuned by `python -m benchmarks denoise`."""

    options: Callable[[float], Mapping[str, str]]
    """Strength (1 is the default) -> the filter's options."""
    min_strength: float = 0
    max_strength: float
    """Where the filter's own range begins and ends."""
    temporal: bool
    """Whether it reads neighbouring frames, and so must see the video's own frame rate."""


def _atadenoise(strength: float) -> dict[str, str]:
    # Thresholds per plane: one pixel's change (a), and the summed change (b), that still count as
    # noise. More than 5 frames smear texture that moves slowly.
    thresholds = {f"{plane}a": f"{0.15 * strength:.6g}" for plane in range(3)}
    thresholds |= {f"{plane}b": f"{0.15 * strength:.6g}" for plane in range(3)}
    return {**thresholds, "s": "5"}


FILTERS: dict[str, FilterDefaults] = {
    "atadenoise": FilterDefaults(options=_atadenoise, max_strength=2, temporal=True),
    "nlmeans": FilterDefaults(
        options=lambda strength: {"s": f"{6 * strength:.6g}", "p": "3", "r": "7"},
        min_strength=1 / 6,
        max_strength=5,
        temporal=False,
    ),
    "bm3d": FilterDefaults(
        options=lambda strength: {"sigma": f"{45 * strength:.6g}", "block": "16", "bstep": "8"},
        max_strength=10,
        temporal=False,
    ),
    "fftdnoiz": FilterDefaults(
        options=lambda strength: {"sigma": f"{30 * strength:.6g}", "block": "16"},
        max_strength=10 / 3,
        temporal=False,
    ),
}


def check_denoise(config: DenoiseConfig) -> None:
    """Raises `UserError` if the filter can't do this strength, or this FFmpeg lacks the filter."""
    if config.kind == "none":
        return
    least, most = FILTERS[config.kind].min_strength, FILTERS[config.kind].max_strength
    if not least <= config.strength <= most:
        raise UserError(
            f"prepare.denoise.strength={config.strength:g} is beyond the range of "
            f"prepare.denoise.kind={config.kind}; use {least:.3g} to {most:.3g}, or another kind"
        )
    if config.kind not in av.filter.filters_available:
        raise UserError(
            f"prepare.denoise.kind={config.kind}: the FFmpeg that PyAV {av.__version__} carries "
            "has no such filter; install PyAV's own wheel, or choose another kind"
        )


def is_temporal(config: DenoiseConfig) -> bool:
    """Whether the filter must see all frames of a segment, not only the chosen ones."""
    return config.kind != "none" and FILTERS[config.kind].temporal


def denoise(frames: Iterable[tuple[Tag, Any]], config: DenoiseConfig) -> Iterator[tuple[Tag, Any]]:
    """Denoises one segment: pairs of (anything, `av.VideoFrame`) come out in the same order.

    All frames have one size and pixel format. The filter may convert the pixel format.
    """
    if config.kind == "none":
        yield from frames
        return
    tags: deque[Tag] = deque()  # the filter keeps the order and gives one frame per frame
    graph: _FilterGraph | None = None
    for index, (tag, image) in enumerate(frames):
        graph = graph or _FilterGraph(image, config)
        tags.append(tag)
        for filtered in graph.push(image, index):
            yield tags.popleft(), filtered
    if graph is not None:
        for filtered in graph.finish():
            yield tags.popleft(), filtered
    assert not tags, "the filter swallowed frames"


class _FilterGraph:
    """buffer -> filter -> buffersink, for frames like the first one."""

    def __init__(self, first: Any, config: DenoiseConfig) -> None:
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        self._source = self._graph.add(
            "buffer",
            video_size=f"{first.width}x{first.height}",
            pix_fmt=first.format.name,
            time_base="1/25",
            # FFmpeg wants frames to be as the source says, or may convert them wrongly.
            colorspace=str(int(first.colorspace)),
            range=str(int(first.color_range)),
        )
        denoiser = self._graph.add(config.kind, **FILTERS[config.kind].options(config.strength))
        self._sink = self._graph.add("buffersink")
        self._source.link_to(denoiser)
        denoiser.link_to(self._sink)
        self._graph.configure()

    def push(self, image: Any, index: int) -> Iterator[Any]:
        image.pts, image.time_base = index, Fraction(1, 25)
        self._source.push(image)
        return self._pull()

    def finish(self) -> Iterator[Any]:
        self._source.push(None)
        return self._pull()

    def _pull(self) -> Iterator[Any]:
        while True:
            try:
                yield self._sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return  # it wants more frames, or has given all
