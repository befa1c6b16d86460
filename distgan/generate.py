"""New videos from a trained generator: MP4 files, a GIF and a contact sheet."""

import json
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distgan import storage
from distgan.config import StorageConfig
from distgan.data.conditioning import condition
from distgan.data.inputs import context_clips
from distgan.errors import UserError
from distgan.export import TrainedGenerator, load_generator
from distgan.pictures import contact_sheet, grid, write_gif, write_mp4
from distgan.precision import pick_device
from distgan.sampling import Sampler

ON_THE_SHEET = 8  # clips in the GIF and on the contact sheet
DEFAULT_RATE_HZ = 8.0  # for data sets that keep each video's own frame rate


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What was written, and where."""

    folder: str
    videos: tuple[str, ...]
    sheet: str
    gif: str
    clips: NDArray[np.uint8]
    """(N, T, H, W, 3)."""
    step: int

    def summary(self) -> str:
        return (
            f"{len(self.videos)} videos from the generator of step {self.step}: "
            f"{self.videos[0]} ...\ncontact sheet: {self.sheet}\nanimation: {self.gif}"
        )


def generate(
    source: str,
    output: str,
    *,
    num: int,
    seed: int,
    truncation: float = 1.0,
    input_folder: str | None = None,
    storage_options: StorageConfig | None = None,
) -> Generated:
    """Writes video_SEED.mp4 for seeds seed ... seed + num - 1, samples.gif and contact_sheet.png.

    Args:
        source: a run folder or an exported generator.
        output: folder; files of these names are replaced.
        storage_options: for object storage, where `storage.configure` was not called yet.
        input_folder: videos whose first frames are given (prediction only); they are used in turn.

    Raises:
        UserError: no generator, bad numbers, or an input that is missing, superfluous or unusable.
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
    rate = trained.frame_rate_hz or DEFAULT_RATE_HZ
    given_clips = _given_clips(trained, input_folder, num)
    sampler = Sampler(trained.generator, trained.config.train.precision, truncation=truncation)
    clips = _sample(trained, sampler, range(seed, seed + num), given_clips)
    names = []
    for offset, clip in enumerate(clips):
        names.append(storage.join(output, f"video_{seed + offset:06d}.mp4"))
        write_mp4(names[-1], clip, rate, least_size=256)
    shown = clips[:ON_THE_SHEET]
    rows = [(f"generated, seeds {seed} to {seed + len(shown) - 1}", shown)]
    if given_clips is not None:
        context = trained.config.conditioning.context_frames
        rows.insert(0, (f"input: the first {context} frames", given_clips[: len(shown)]))
    sheet, gif = (storage.join(output, name) for name in ("contact_sheet.png", "samples.gif"))
    contact_sheet(rows, sheet)
    write_gif(gif, grid(shown), rate, least_size=256)
    _write_facts(output, source, trained, seed, num, truncation)
    return Generated(
        folder=output, videos=tuple(names), sheet=sheet, gif=gif, clips=clips, step=trained.step
    )


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


def _given_clips(
    trained: TrainedGenerator, input_folder: str | None, num: int
) -> NDArray[np.uint8] | None:
    """(num, T, H, W, 3): one clip a generated video, the inputs taken in turn."""
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
    clips = context_clips(input_folder, trained.config, trained.frame_rate_hz)
    return np.stack([clips[index % len(clips)] for index in range(num)])


def _write_facts(
    output: str, source: str, trained: TrainedGenerator, seed: int, num: int, truncation: float
) -> None:
    facts = {
        "source": source,
        "step": trained.step,
        "seeds": [seed, seed + num - 1],
        "truncation": truncation,
        "config": trained.config.model_dump(mode="json"),
    }
    text = json.dumps(facts, indent=1)
    storage.write_bytes(storage.join(output, "generated.json"), text.encode())
