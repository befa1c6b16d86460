"""Contact sheets of a comparison: what the trained generators make, a sheet a kind and one of all.

All generators get the same noise.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from distgan import storage
from distgan.compare.real_clips import REAL_CLIPS, read_real_clips
from distgan.compare.results import KindResult, Results
from distgan.compare.wording import format_number
from distgan.config import Config
from distgan.data.conditioning import condition
from distgan.errors import UserError
from distgan.export import load_generator
from distgan.pictures import contact_sheet
from distgan.precision import pick_device
from distgan.sampling import Sampler

CLIPS_A_KIND = 2  # on the sheet of all kinds

Pixels = NDArray[np.uint8]
"""Clips (N, T, H, W, 3)."""


def write_sheets(results: Results, output: str, folder: str) -> list[str]:
    """Writes KIND.png for each kind and all.png; their names, that of all kinds first.

    Raises:
        UserError: a trained generator is no longer there; then nothing is written.
    """
    real = read_real_clips(storage.join(output, REAL_CLIPS))
    shown = _pixels(real)
    sheets: dict[str, list[tuple[str, Pixels]]] = {}
    of_all: list[tuple[str, Pixels]] = [("real", shown[:CLIPS_A_KIND])]
    for kind in results.kinds:
        rows: list[tuple[str, Pixels]] = [("real", shown)]
        for course in kind.courses:
            config = results.plan.run_config(output, kind.kind, course.seed)
            ended = "" if course.diverged_at is None else f", diverged at step {course.diverged_at}"
            label = f"{kind.name}, seed {course.seed}: {format_number(course.at_end())}{ended}"
            rows.append((label, _made(config, real)))
        sheets[f"{kind.name}.png"] = rows
        of_all.append(_typical(kind, rows[1:]))
    sheets = {"all.png": of_all} | sheets
    for name, rows in sheets.items():
        contact_sheet(rows, storage.join(folder, name))
    return list(sheets)


def _typical(kind: KindResult, rows: list[tuple[str, Pixels]]) -> tuple[str, Pixels]:
    """The seed whose distance is the median (of two the better): not a chosen one."""
    order = np.argsort([course.at_end() for course in kind.courses], kind="stable")
    label, clips = rows[int(order[(len(order) - 1) // 2])]
    return label, clips[:CLIPS_A_KIND]


def _made(config: Config, real: torch.Tensor) -> Pixels:
    """Clips of a run's averaged generator; grey ones if it diverged before its first checkpoint."""
    try:
        trained = load_generator(config.run.dir, pick_device(config.train.device))
    except UserError:
        if not storage.exists(storage.join(config.run.dir, "DIVERGED.json")):
            raise
        return np.full_like(_pixels(real), 128)
    given, known = condition(real.float() / 127.5 - 1, config.conditioning)
    sampler = Sampler(trained.generator, config.train.precision)
    return _pixels(sampler.clips(range(len(real)), given, known))


def _pixels(clips_BCTHW: torch.Tensor) -> Pixels:
    pixels: Pixels = clips_BCTHW.permute(0, 2, 3, 4, 1).contiguous().numpy()
    return pixels
