"""Local debug mode: both networks whole in this process, on one device."""

import torch

from distgan import storage
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.data.stream import ClipStream
from distgan.ema import PlainAverage
from distgan.engine import PlainEngine
from distgan.networks import build_discriminator, build_generator
from distgan.precision import exact_float32, pick_device, pick_precision
from distgan.run_folder import StopSignals, alone_in, start_or_resume
from distgan.team import Alone
from distgan.trainer import Listener, Outcome, StopRequests, Trainer


def train_locally(
    config: Config,
    *,
    show_progress: bool = True,
    requests: StopRequests | None = None,
    listener: Listener | None = None,
) -> Outcome:
    """Trains, or goes on with, the run in `config.run.dir`.

    Args:
        requests: what asks to stop; None means SIGINT and SIGTERM (in the main thread only).
        listener: told what is logged.

    Raises:
        StorageError: object storage failed for longer than `storage.retry_seconds`.
        UserError: bad input; see `start_or_resume`, `ClipStream` and `Trainer.run`.
        DivergedError: training diverged, now or at an earlier start.
    """
    storage.configure(config.storage)
    config = start_or_resume(config)
    device = pick_device(config.train.device)
    exact_float32()
    stream = ClipStream(
        config.data.shards, config.data, seed=config.seed, batch_size=config.train.batch_size
    )
    config = with_values(
        config,
        {
            "train.precision": pick_precision(config.train.precision, device),
            "train.schedule_steps": config.train.schedule_steps or config.train.max_steps,
        },
    )
    trainer = build_trainer(config, device, stream, show_progress=show_progress)
    trainer.listener = listener
    with alone_in(config.run.dir):
        if requests is not None:
            return trainer.run(requests)
        with StopSignals().watching() as signals:
            return trainer.run(signals)


def build_trainer(
    config: Config, device: torch.device, stream: ClipStream, *, show_progress: bool = True
) -> Trainer:
    """A trainer over plain engines, at its start weights."""
    precision = config.train.precision
    generator = build_generator(config, device)
    return Trainer(
        config,
        device,
        PlainEngine("generator", generator, config.optim.generator, precision),
        PlainEngine(
            "discriminator",
            build_discriminator(config, device),
            config.optim.discriminator,
            precision,
        ),
        PlainAverage(build_generator(config, device), generator),
        stream,
        Alone(),
        show_progress=show_progress,
    )
