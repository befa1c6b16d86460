"""The demo: real video files, the real prepare, train and generate, and an honest verdict.

Everything lands in one folder; a second run goes on where the first one stopped.
"""

import json
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distgan import storage
from distgan.config import Config
from distgan.config_loading import load_config, with_values
from distgan.data.demo import render_demo_videos
from distgan.data.prepare import prepare
from distgan.data.prepare_report import summary
from distgan.data.stream import ClipStream
from distgan.export import load_generator
from distgan.generate import generate
from distgan.local import train_locally
from distgan.metrics.proxy import ProxyDistance, SanityRow, sanity_rows
from distgan.metrics.writer import tensorboard_command
from distgan.networks import build_generator
from distgan.pictures import contact_sheet
from distgan.precision import pick_device
from distgan.sampling import Sampler

NUM_VIDEOS = 256
NUM_MEASURED = 256  # generated clips, and as many real ones, for the numbers at the end
NUM_SHOWN = 8


def run_demo(output: str, overrides: Sequence[str]) -> int:
    """Runs all of it and returns the exit code."""
    folder = {part: storage.join(output, part) for part in ("videos", "data", "run", "samples")}
    config = with_values(
        load_config("demo", overrides=overrides),
        {"run.dir": folder["run"], "data.shards": folder["data"]},
    )
    print(f"1/4 rendering {NUM_VIDEOS} videos of moving shapes into {folder['videos']}")
    render_once(folder["videos"])
    print(f"2/4 preparing them: clean, format, pack into shards in {folder['data']}")
    print(summary(prepare(folder["videos"], folder["data"], config)))
    print(f"3/4 training a generator and a discriminator in {folder['run']}")
    outcome = train_locally(config)
    if outcome.signal:
        print("stopped with a checkpoint; run the same command again to go on")
        return 128 + outcome.signal
    print(f"4/4 generating {NUM_MEASURED} new videos into {folder['samples']}")
    made = generate(folder["run"], folder["samples"], num=NUM_MEASURED, seed=0)
    generated = _sample(folder["run"])
    stream = ClipStream(folder["data"], config.data, seed=0, batch_size=config.train.batch_size)
    real = stream.reference_clips(2 * NUM_MEASURED)
    sheet = storage.join(output, "contact_sheet.png")
    rows = [
        ("real", _pixels(real[:: len(real) // NUM_SHOWN])),
        (f"generated, after {outcome.step} steps", _pixels(generated[:NUM_SHOWN])),
    ]
    contact_sheet(rows, sheet)
    print(_verdict(output, config, real, generated))
    print(f"contact sheet (real above generated): {sheet}")
    print(f"a generated video: {made.videos[0]} (all of them: {made.gif})")
    print(f"losses and samples over time: {tensorboard_command(folder['run'])}")
    return 0


def render_once(folder: str) -> None:
    """The demo's videos, unless they are there already."""
    if len(storage.list_names(folder)) != NUM_VIDEOS:
        render_demo_videos(folder, num_videos=NUM_VIDEOS, seed=0)


def _sample(run_dir: str) -> Tensor:
    """The clips that `generate` wrote, before any codec: uint8 (N, 3, T, H, W)."""
    trained = load_generator(run_dir, pick_device("auto"))
    return Sampler(trained.generator, trained.config.train.precision).clips(range(NUM_MEASURED))


def _pixels(clips_BCTHW: Tensor) -> NDArray[np.uint8]:
    """(B, T, H, W, 3), as pictures are made of."""
    pixels: NDArray[np.uint8] = clips_BCTHW.permute(0, 2, 3, 4, 1).contiguous().numpy()
    return pixels


def _verdict(output: str, config: Config, real: Tensor, generated: Tensor) -> str:
    """Numbers for the generated clips between rows that show what the numbers mean."""
    untrained = Sampler(build_generator(config, torch.device("cpu")), "fp32")
    rows = sanity_rows(
        ProxyDistance(real[::2]),
        real[1::2],
        {"generated": generated, "untrained generator": untrained.clips(range(len(generated)))},
        with_validity=True,
    )
    facts = [
        {"clips": row.name, "proxy_frechet": row.proxy_frechet, "valid_share": row.valid_share}
        for row in rows
    ]
    text = json.dumps(facts, indent=1)
    storage.write_bytes(storage.join(output, "quality.json"), text.encode())
    return table(rows)


def table(rows: Sequence[SanityRow]) -> str:
    """Markdown. A clip is valid if it shows one solid blob of steady colour on a smooth path."""
    lines = ["| clips | proxy Frechet distance | share of valid clips |", "|---|---|---|"]
    for row in rows:
        share = "" if row.valid_share is None else f"{row.valid_share:.2f}"
        lines.append(f"| {row.name} | {row.proxy_frechet:.4g} | {share} |")
    return "\n".join(lines)
