"""The training loop: one story for every engine.

Read a batch, take the G+D step, move the average, log, sample, save, ask whether to stop. Where the
networks live and how they are updated is the engines' business.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from distgan.adversarial_step import AdversarialStep
from distgan.checkpoint import Checkpoint, load_newest, save_checkpoint, set_aside_after
from distgan.config import Config
from distgan.config_loading import dump_yaml
from distgan.data.stream import ClipBatch, ClipStream
from distgan.ema import Average, ema_decay
from distgan.engine import Engine
from distgan.errors import DivergedError, UserError
from distgan.export import TrainedGenerator, export_generator
from distgan.metrics.writer import MetricsWriter
from distgan.observer import Observer
from distgan.run_folder import StopSignals, alone_in, mark_diverged, save_config
from distgan.stopping import StopRules
from distgan.timing import MetricMeans, PartTimer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended."""

    step: int
    reason: str
    signal: int | None = None
    """SIGINT or SIGTERM, if one of them ended it."""


class Trainer:
    """Trains until a stop rule holds or a signal comes; the run's folder says the rest."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        generator: Engine,
        discriminator: Engine,
        average: Average,
        stream: ClipStream,
        *,
        show_progress: bool = True,
    ) -> None:
        self.config, self.device, self.stream = config, device, stream
        self.engines = (generator, discriminator)
        self.average = average
        self.timer = PartTimer(device)
        self.adversarial = AdversarialStep(config, generator, discriminator, self.timer)
        self.rules = StopRules(config)
        self.means = MetricMeans()
        self.show_progress = show_progress
        self.step = 0
        self.earlier_seconds = 0.0
        self.started = time.monotonic()

    @property
    def clips_seen(self) -> int:
        return self.step * self.config.train.batch_size

    @property
    def seconds(self) -> float:
        """Training time over all starts of the run."""
        return self.earlier_seconds + time.monotonic() - self.started

    def run(self) -> Outcome:
        """Resumes from the newest whole checkpoint, if there is one, and trains to the end.

        Raises:
            DivergedError: training left the region it can come back from; a marker stays behind.
            UserError: the run can't go on as asked, or a checkpoint can't be written.
        """
        with alone_in(self.config.run.dir):
            self._resume()
            save_config(self.config)  # only now: a start that is refused leaves nothing behind
            outcome = self._train()
            self.export()
        return outcome

    def _train(self) -> Outcome:
        self.started = time.monotonic()
        with (
            MetricsWriter(self.config.run.dir, self.step) as writer,
            StopSignals().watching() as signals,
        ):
            if self.step == 0:
                writer.text("config", f"```yaml\n{dump_yaml(self.config)}```")
            observer = Observer(self.config, self.stream, self.average, writer, self.device)
            try:
                return self._loop(observer, signals)
            except DivergedError as error:
                mark_diverged(self.config.run.dir, self.step, str(error))
                raise

    def _loop(self, observer: Observer, signals: StopSignals) -> Outcome:
        saved = self.step if self.step else -1
        reason = self.rules.reason(self.step, self._epoch(), self.seconds)
        pin_memory = self.device.type == "cuda"
        with (
            contextlib.closing(
                self.stream.batches(self.clips_seen, pin_memory=pin_memory)
            ) as batches,
            tqdm(
                total=self.config.train.max_steps,
                initial=self.step,
                unit="step",
                disable=not self.show_progress,
            ) as bar,
        ):
            while reason is None and signals.received is None:
                self.train_on(self.next_batch(batches))
                logged = self.log(observer, bar)
                self.rules.observe(self.step, logged)
                bar.update()
                reason = self.rules.reason(self.step, self._epoch(), self.seconds)
                if self.step % self.config.checkpoint.interval_steps == 0:
                    self.save(observer)
                    saved = self.step
        if saved != self.step:
            self.save(observer)
        if reason is None:
            reason = "a signal"
            return Outcome(step=self.step, reason=reason, signal=signals.received)
        return Outcome(step=self.step, reason=reason)

    def next_batch(self, batches: Iterator[ClipBatch]) -> ClipBatch:
        """The next batch, with the wait for it timed."""
        with self.timer.part("data"):
            return next(batches)

    def train_on(self, batch: ClipBatch) -> None:
        """One step, from a batch to moved weights."""
        with self.timer.part("step"):
            clips = batch.clips
            if self.device.type == "cuda":
                clips = clips.to(self.device, non_blocking=True)
            metrics = self.adversarial.run(clips, batch.places, self.step + 1)
            self.step += 1
            train = self.config.train
            decay = ema_decay(
                train.batch_size, self.clips_seen, train.ema_half_life_clips, train.ema_ramp
            )
            self.average.update(decay)
        self.means.add(metrics)
        self.rules.observe_sign(self.step, metrics["score/sign"].item())

    def log(self, observer: Observer, bar: Any = None) -> dict[str, float]:
        """Writes what is due after this step; returns what stop rules may look at."""
        logged: dict[str, float] = {}
        interval = self.config.log.interval_steps
        if self.step % interval == 0:
            logged = self.means.read()
            times = self.timer.read(interval)
            logged |= {"progress/epoch": self._epoch(), "progress/clips": float(self.clips_seen)}
            logged |= self.stream.damage.metrics()
            logged |= observer.speed(times, self.clips_seen)
            if bar is not None:
                bar.set_postfix(
                    D=f"{logged['loss/discriminator']:.3f}",
                    G=f"{logged['loss/generator']:.3f}",
                    sign=f"{logged['score/sign']:.2f}",
                    clips_s=f"{logged.get('throughput/clips_per_s', 0):.1f}",
                )
        logged |= observer.quality_if_due(self.step)
        if logged:
            observer.writer.scalars(self.step, logged)
        observer.samples_if_due(self.step)
        return logged

    def _epoch(self) -> float:
        return self.clips_seen / self.stream.samples_an_epoch

    def save(self, observer: Observer) -> None:
        """Commits everything that a resumed run needs to equal one that never stopped."""
        observer.writer.flush()
        fragments = self.average.state_fragments()
        for engine in self.engines:
            fragments += engine.state_fragments()
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "stream": {
                "samples": self.clips_seen,
                "data_set": self.stream.digest,
                "damage": self.stream.damage.state(),
            },
            "rules": self.rules.state(),
            "means": self.means.state(),
            "frame_rate_hz": self.stream.manifest.clip.frame_rate_hz,
            "config": self.config.model_dump(mode="json"),
        }
        save_checkpoint(
            self.config.run.dir, self.step, fragments, state, keep=self.config.checkpoint.keep
        )

    def _resume(self) -> None:
        run_dir = self.config.run.dir
        checkpoint, problems = load_newest(run_dir)
        for problem in problems:
            tqdm.write(f"damaged checkpoint passed by: {problem}")
        if checkpoint is not None:
            tqdm.write(f"resuming {run_dir} from step {checkpoint.step}")
            self._load(checkpoint)
        elif self.config.run.init_from:
            self._init_from(self.config.run.init_from)
        set_aside_after(run_dir, self.step)

    def _load(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if state["stream"]["data_set"] != self.stream.digest:
            raise UserError(
                f"data.shards={self.stream.folder} is not the data set that this run was trained "
                "on (its manifest differs); give that one, or start a new run with run.init_from"
            )
        for part in (self.average, *self.engines):
            part.load_state_tensors(checkpoint.tensors)
        self.step, self.earlier_seconds = state["step"], state["seconds"]
        self.rules.load_state(state["rules"])
        self.means.load_state(state["means"], self.device)
        damage = self.stream.damage
        damage.load_state(state["stream"].get("damage", {}))  # older checkpoints have none
        if damage.num_shards:
            tqdm.write(f"damaged data found before: {damage.summary()}")

    def _init_from(self, source: str) -> None:
        """Starts a new run from another's newest weights: both networks and the average."""
        checkpoint, problems = load_newest(source)
        for problem in problems:
            tqdm.write(f"damaged checkpoint passed by: {problem}")
        if checkpoint is None:
            raise UserError(f"run.init_from={source}: no complete checkpoint there")
        wanted = self.average.parameter_shapes()
        for engine in self.engines:
            wanted |= engine.parameter_shapes()
        ours = {n: t for n, t in checkpoint.tensors.items() if ".optimizer/" not in n}
        there = {n: tuple(t.shape) for n, t in ours.items()}
        if wanted != there:
            differing = len(set(wanted.items()) ^ set(there.items()))
            raise UserError(
                f"run.init_from={source}: its networks are not those of this configuration "
                f"({differing} names or shapes differ); use the same model section"
            )
        for part in (self.average, *self.engines):
            part.load_state_tensors(ours)

    def export(self) -> str:
        """Writes the EMA generator into the run folder."""
        with self.average.whole() as generator:
            trained = TrainedGenerator(
                generator=generator,
                config=self.config,
                step=self.step,
                frame_rate_hz=self.stream.manifest.clip.frame_rate_hz,
            )
            return export_generator(self.config.run.dir, trained)
