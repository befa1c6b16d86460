"""New videos from a trained generator: MP4 files, a GIF and a contact sheet."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from distgan import storage
from distgan.attention_maps import (
    PREFIX,
    check_pixels,
    check_shows_attention,
    looks_of,
    recorded_layers,
    write_maps,
)
from distgan.config import StorageConfig
from distgan.data.conditioning import condition
from distgan.data.inputs import context_clips
from distgan.errors import UserError
from distgan.export import TrainedGenerator, load_generator
from distgan.pictures import contact_sheet, grid, write_gif, write_mp4
from distgan.precision import pick_device
from distgan.sampling import BATCH_SIZE, Sampler
from distgan.sparsity import Grid

FACTS, SHEET, GIF = "generated.json", "contact_sheet.png", "samples.gif"
_VIDEO = re.compile(r"video_\d{6,}\.mp4|" + PREFIX + r"[a-z0-9_]+\.(png|mp4)")
ON_THE_SHEET = 8  # clips in the GIF and on the contact sheet
DEFAULT_RATE_HZ = 8.0  # for data sets that keep each video's own frame rate


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What was written, and where."""

    folder: str
    videos: tuple[str, ...]
    sheet: str
    gif: str
    step: int
    attention: tuple[str, ...] = ()
    """Pictures of where attention looks; each has a video beside it."""

    def summary(self) -> str:
        videos = "1 video" if len(self.videos) == 1 else f"{len(self.videos)} videos"
        lines = [
            f"{videos} from the generator of step {self.step}: {self.videos[0]} ...",
            f"contact sheet: {self.sheet}",
            f"animation: {self.gif}",
        ]
        if self.attention:
            lines.append(f"attention: {', '.join(self.attention)}, with a .mp4 beside each")
        return "\n".join(lines)


def generate(
    source: str,
    output: str,
    *,
    num: int,
    seed: int,
    truncation: float = 1.0,
    input_folder: str | None = None,
    storage_options: StorageConfig | None = None,
    show_attention: bool = False,
    attention_at: Sequence[Grid] | None = None,
) -> Generated:
    """Writes video_SEED.mp4 for seeds seed ... seed + num - 1, samples.gif and contact_sheet.png.

    Args:
        source: a run folder or an exported generator.
        output: a new or empty folder, or one of an earlier `generate`, whose videos are replaced.
        storage_options: for object storage, where `storage.configure` was not called yet.
        input_folder: videos whose first frames are given (prediction only); they are used in turn.
        show_attention: also draw where the generator's attention looks in the first video.
        attention_at: pixels (frame, row, column) whose tokens are drawn; None: striking ones.

    Raises:
        UserError: no generator, bad numbers, an input that is missing, superfluous or unusable, or
            an output folder that holds something else.
        StorageError: object storage failed for longer than `storage.retry_seconds`.
    """
    if storage_options is not None:
        storage.configure(storage_options)
    if num < 1:
        raise UserError(f"--num {num}: ask for at least one video")
    if seed < 0:
        raise UserError(f"--seed {seed}: seeds count from 0")
    if not 0 <= truncation <= 1:
        raise UserError(f"--truncation {truncation}: give a number from 0 to 1")
    trained = load_generator(source, pick_device("auto"))
    if show_attention:
        check_shows_attention(trained.config)
    if attention_at is not None:
        check_pixels(trained.config, attention_at, show_attention)
    contexts = _contexts(trained, input_folder)
    _claim(output)
    facts = {
        "source": source,
        "step": trained.step,
        "seeds": [seed, seed + num - 1],
        "truncation": truncation,
        "config": trained.config.model_dump(mode="json"),
    }
    try:
        text = json.dumps(facts, indent=1)
        storage.write_bytes(storage.join(output, FACTS), text.encode())
        seeds = range(seed, seed + num)
        made = _write_videos(trained, output, seeds, truncation, contexts)
        if show_attention:
            maps = _write_attention(trained, output, seeds[:1], truncation, contexts, attention_at)
            made = replace(made, attention=tuple(maps))
        return made
    except BaseException:  # nothing half-written stays, after Ctrl-C neither
        _clear(output)
        raise


def _claim(output: str) -> None:
    """Makes room in a folder that is new, empty, or holds what `generate` made before."""
    names = storage.list_names(output)
    if names and FACTS not in names:
        raise UserError(
            f"--output {output!r} holds something else ({names[0]}, ...); name an empty or new "
            "folder, or one of an earlier `generate`"
        )
    _clear(output)


def _clear(output: str) -> None:
    """Removes what `generate` wrote, its mark last."""
    names = storage.list_names(output)
    own = [name for name in names if name in (SHEET, GIF) or _VIDEO.fullmatch(name)]
    for name in [*own, *({FACTS} & set(names))]:
        storage.remove(storage.join(output, name))


def _write_videos(
    trained: TrainedGenerator,
    output: str,
    seeds: range,
    truncation: float,
    contexts: NDArray[np.uint8] | None,
) -> Generated:
    """A few at a time, so that memory is bounded whatever the number."""
    rate = trained.frame_rate_hz or DEFAULT_RATE_HZ
    sampler = Sampler(trained.generator, trained.config.train.precision, truncation=truncation)
    names: list[str] = []
    shown: NDArray[np.uint8] | None = None
    first_given: NDArray[np.uint8] | None = None
    starts = range(0, len(seeds), BATCH_SIZE)
    for start in tqdm(starts, desc="generate", unit="batch", disable=len(starts) < 2):
        numbers = range(start, min(start + BATCH_SIZE, len(seeds)))
        given = None
        if contexts is not None:
            given = np.stack([contexts[number % len(contexts)] for number in numbers])
        clips = _sample(trained, sampler, seeds[numbers.start : numbers.stop], given)
        for number, clip in zip(numbers, clips, strict=True):
            names.append(storage.join(output, f"video_{seeds[number]:06d}.mp4"))
            write_mp4(names[-1], clip, rate, least_size=256)
        if shown is None:
            shown, first_given = clips[:ON_THE_SHEET], given
    assert shown is not None
    rows = [(f"generated, seeds {seeds[0]} to {seeds[len(shown) - 1]}", shown)]
    if first_given is not None:
        context = trained.config.conditioning.context_frames
        rows.insert(0, (f"input: the first {context} frames", first_given[: len(shown)]))
    sheet, gif = storage.join(output, SHEET), storage.join(output, GIF)
    contact_sheet(rows, sheet)
    write_gif(gif, grid(shown), rate, least_size=256)
    return Generated(folder=output, videos=tuple(names), sheet=sheet, gif=gif, step=trained.step)


def _write_attention(
    trained: TrainedGenerator,
    output: str,
    first: range,
    truncation: float,
    contexts: NDArray[np.uint8] | None,
    pixels: Sequence[Grid] | None,
) -> list[str]:
    """Draws the first video once more and looks on; returns the pictures' names."""
    sampler = Sampler(trained.generator, trained.config.train.precision, truncation=truncation)
    given = None if contexts is None else contexts[:1]
    with recorded_layers(trained.generator) as inputs:
        clip = _sample(trained, sampler, first, given)[0]
    looks = looks_of(trained.generator, inputs, clip, pixels)
    return write_maps(looks, clip, output, trained.frame_rate_hz or DEFAULT_RATE_HZ)


def _sample(
    trained: TrainedGenerator, sampler: Sampler, seeds: range, given: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    video = known = None
    if given is not None:
        real = torch.from_numpy(given).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        video, known = condition(real, trained.config.conditioning)
    clips: NDArray[np.uint8] = (
        sampler.clips(seeds, video, known).permute(0, 2, 3, 4, 1).contiguous().numpy()
    )
    return clips


def _contexts(trained: TrainedGenerator, input_folder: str | None) -> NDArray[np.uint8] | None:
    """(M, T, H, W, 3): a clip per input video, whose first frames are given; taken in turn."""
    task = trained.config.conditioning.task
    if task == "none":
        if input_folder is not None:
            raise UserError(
                f"--input {input_folder}: this generator was trained with conditioning.task=none "
                "and reads no video; leave --input out"
            )
        return None
    if input_folder is None:
        raise UserError(
            f"this generator was trained with conditioning.task={task}: give videos with --input"
        )
    return context_clips(input_folder, trained.config, trained.frame_rate_hz)
