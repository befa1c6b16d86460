"""What a run shows of itself: real clips that differ, beside samples on their conditions."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from distgan import observer as observer_module
from distgan.config_loading import load_config
from distgan.data.stream import ClipStream
from distgan.ema import PlainAverage
from distgan.metrics.writer import MetricsWriter
from distgan.networks import build_generator
from distgan.observer import Observer
from distgan.team import Alone
from tests.tiny import TINY


def test_the_real_clips_shown_differ_and_give_the_samples_their_conditions(
    tiny_data: str, tmp_path: Path
) -> None:
    """Of 40 clips, 256 are measured: the first 4 of those would all be the same one."""
    config = load_config(
        overrides=[
            *TINY, f"data.shards={tiny_data}", f"run.dir={tmp_path}", "log.num_samples=4",
            "log.sample_interval_steps=1", "conditioning.task=prediction",
            "conditioning.context_frames=2",
        ]
    )  # fmt: skip
    stream = ClipStream(tiny_data, config.data, seed=0, batch_size=config.train.batch_size)
    cpu = torch.device("cpu")
    average = PlainAverage(build_generator(config, cpu), build_generator(config, cpu))
    with (
        MetricsWriter(str(tmp_path)) as writer,
        patch.object(observer_module, "contact_sheet") as sheet,
    ):
        Observer(config, stream, average, writer, Alone(), cpu).samples_if_due(1)
    (_, real), (_, made) = sheet.call_args.args[0]
    assert real.shape == made.shape == (4, 4, 16, 16, 3)
    assert len({clip.tobytes() for clip in real}) == 4
    # The frames that the task gives come back unchanged, up to rounding to uint8.
    assert np.abs(made[:, :2].astype(int) - real[:, :2].astype(int)).max() <= 1
