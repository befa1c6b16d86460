"""The training loop: one story for every engine and any number of ranks.

Read a batch, take the G+D step, move the average, log, sample, save, ask whether to stop. Where the
networks live and how they are updated is the engines' business. All ranks run this loop in step;
what one of them learns (a signal, the clock, that its pieces are saved) reaches all in the same
sums as the metrics, so that all decide alike. Rank 0 alone writes what people look at.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from tqdm import tqdm

from distgan.adversarial_step import AdversarialStep, Metrics
from distgan.config import Config
from distgan.config_loading import dump_yaml
from distgan.costs import save_costs
from distgan.data.stream import ClipBatch, ClipStream
from distgan.ema import Average, ema_decay
from distgan.engine import Engine
from distgan.errors import DivergedError, NonFiniteError
from distgan.export import TrainedGenerator, export_generator
from distgan.metrics.writer import MetricsWriter
from distgan.observer import Observer
from distgan.resuming import resume, run_state
from distgan.run_folder import mark_diverged, save_config
from distgan.saving import Saver
from distgan.stopping import StopRules
from distgan.team import Team, failing_together
from distgan.timing import ComputeClock, MetricMeans, PartTimer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended."""

    step: int
    reason: str
    signal: int | None = None
    """The one that ended it, if it was a signal."""


class StopRequests(Protocol):
    """Where a rank hears that training shall end with a checkpoint."""

    @property
    def received(self) -> int | None:
        """The signal's number, once it has come."""
        ...


class Listener(Protocol):
    """Told on rank 0 what was logged, once a checkpoint due at that step has begun; may wait."""

    def __call__(self, step: int, seconds: float, logged: Mapping[str, float]) -> None:
        """`seconds`: training time over all starts of the run."""
        ...


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
        team: Team,
        *,
        show_progress: bool = True,
    ) -> None:
        self.config, self.device, self.stream, self.team = config, device, stream, team
        self.engines = (generator, discriminator)
        self.average = average
        self.timer = PartTimer(device)
        self.timed_steps = 0
        """Since the timer was read last."""
        self.compute = ComputeClock(device)
        self.adversarial = AdversarialStep(config, generator, discriminator, self.timer)
        self.rules = StopRules(config)
        self.means = MetricMeans()
        self.show_progress = show_progress
        self.listener: Listener | None = None
        """All ranks have one or none has; what it asks of the requests holds for the same step."""
        self.latest: dict[str, float] = {}
        """What was logged last."""
        self.step = 0
        self.saved_step = -1
        """Of the newest checkpoint; -1 without one."""
        self.checkpoint_seconds: float | None = None
        """What the last one took until it counted, on rank 0."""
        self.earlier_seconds = 0.0
        self.started = time.monotonic()
        self.seconds = 0.0
        """Training time over all starts of the run, by rank 0's clock."""

    @property
    def clips_seen(self) -> int:
        return self.step * self.config.train.batch_size

    def run(self, requests: StopRequests) -> Outcome:
        """Resumes from the newest whole checkpoint, if there is one, and trains to the end.

        Raises:
            DivergedError: training left the region it can come back from; a marker stays behind.
            UserError: the run can't go on as asked, or a checkpoint can't be written.
        """
        resume(self)
        if self.team.rank == 0:  # only now: a start that is refused leaves nothing behind
            save_config(self.config)
        try:
            outcome = self._train_and_roll_back(requests)
        except DivergedError as error:
            with failing_together(self.team):  # a rank that ended before would end this write
                if self.team.rank == 0:
                    mark_diverged(self.config.run.dir, self.step, str(error))
            raise
        self.export()
        return outcome

    def _train_and_roll_back(self, requests: StopRequests) -> Outcome:
        try:
            return self._train(requests)
        except NonFiniteError as error:
            # A machine's fault passes; what follows from weights and data comes again, and then
            # it is the run that is wrong.
            self.say(f"{error}; going back to the newest checkpoint, once, if there is one")
            if not resume(self):
                raise
        return self._train(requests)

    def _train(self, requests: StopRequests) -> Outcome:
        self.started = time.monotonic()
        with contextlib.ExitStack() as stack:
            writer = None
            if self.team.rank == 0:
                writer = stack.enter_context(MetricsWriter(self.config.run.dir, self.step))
                if self.step == 0:
                    writer.text("config", f"```yaml\n{dump_yaml(self.config)}```")
                    writer.text("costs", f"```\n{save_costs(self.config)}\n```")
            observer = Observer(
                self.config, self.stream, self.average, writer, self.team, self.device
            )
            checkpoint = self.config.checkpoint
            saver = Saver(self.config.run.dir, checkpoint.keep, self.team)
            try:
                return self._loop(observer, saver, requests)
            except DivergedError:  # on all ranks at once; going back must find no half-written one
                saver.finish()
                raise

    def _loop(self, observer: Observer, saver: Saver, requests: StopRequests) -> Outcome:
        due = False
        _, number = self._agree({}, saver, requests)
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
            while reason is None and number is None:
                metrics = self.train_on(self.next_batch(batches))
                metrics, number = self._agree(metrics, saver, requests)
                logged = self.note(metrics, observer)
                bar.set_postfix(progress_facts(self.latest), refresh=False)
                bar.update()
                reason = self.rules.reason(self.step, self._epoch(), self.seconds)
                due = due or self.step % self.config.checkpoint.interval_steps == 0
                if due and not self.rules.skipped_in_a_row:  # what a run goes back to is good
                    self.save(observer, saver)
                    due = False
                if logged and self.listener is not None:
                    if self.team.rank == 0:
                        self.listener(self.step, self.seconds, logged)
                    _, number = self._agree({}, saver, requests)
        if self.saved_step != self.step:
            self.save(observer, saver)
        saver.finish()
        return Outcome(step=self.step, reason=reason or "a signal", signal=number)

    def next_batch(self, batches: Iterator[ClipBatch]) -> ClipBatch:
        """The next batch, with the wait for it timed."""
        with self.timer.part("data"):
            return next(batches)

    def train_on(self, batch: ClipBatch) -> Metrics:
        """One step, from a batch to moved weights; returns this rank's metrics.

        A step whose gradient is not finite returns none: it ends where that is found, on all ranks.
        """
        self.timed_steps += 1
        with self.timer.part("step"), self.compute.running():
            clips = batch.clips
            if self.device.type == "cuda":
                clips = clips.to(self.device, non_blocking=True)
            self.step += 1
            try:
                metrics = self.adversarial.run(clips, batch.places, self.step)
            except NonFiniteError as error:
                self.rules.observe_skipped(self.step, error)
                self.say(f"{error}; the update is left out")
                return {}
            self.rules.observe_update()
            self.average.update(self._decay())
        return metrics

    def _decay(self) -> float:
        """Of the average. One that a run took over from another is nothing to forget."""
        train = self.config.train
        ramp = 0.0 if self.config.run.init_from else train.ema_ramp
        return ema_decay(train.batch_size, self.clips_seen, train.ema_half_life_clips, ramp)

    def _agree(
        self, metrics: Metrics, saver: Saver, requests: StopRequests
    ) -> tuple[Metrics, int | None]:
        """The step's metrics over all ranks, and the signal that asks all to stop.

        In the same exchange, all learn the time and commit a checkpoint that is written whole.
        """
        seconds = self.earlier_seconds + time.monotonic() - self.started
        first = self.team.rank == 0  # its clock and its signals count
        own = {
            "own/seconds": seconds if first else 0.0,
            "own/signal": float(requests.received or 0) if first else 0.0,
            "own/written": float(saver.has_written),
        }
        numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in own.items()}
        totals = self.team.totals(metrics | numbers)
        of_all = {name: totals.pop(name).item() for name in own}
        self.seconds = of_all["own/seconds"]
        if of_all["own/written"] == self.team.size:
            saver.commit()
        self.checkpoint_seconds = saver.seconds or self.checkpoint_seconds
        number = int(of_all["own/signal"]) or None
        if self.team.size > 1:
            totals = {name: total / self.team.size for name, total in totals.items()}
        return totals, number

    def note(self, metrics: Metrics, observer: Observer) -> dict[str, float]:
        """Adds a step's metrics (of all ranks) to the means, and logs and shows what is due.

        Returns:
            What was logged, equal on all ranks but for the times.
        """
        if metrics:
            self.means.add(metrics)
            self.rules.observe_sign(self.step, metrics["score/sign"].item())
        logged: dict[str, float] = {}
        interval = self.config.log.interval_steps
        is_due = self.step % interval == 0
        if is_due or self.step == self.config.train.max_steps:
            # The last step is no place to start anew: a run that is given more steps goes on there
            # as if it had had them from the start.
            logged = self.means.read() if is_due else self.means.so_far()
            times = self.timer.read(max(self.timed_steps, 1))
            self.timed_steps = 0
            logged |= {"progress/epoch": self._epoch(), "progress/clips": float(self.clips_seen)}
            logged |= self.rules.metrics()
            self._share_damage()
            logged |= self.stream.damage.metrics()
            logged |= observer.speed(times, self.clips_seen)
            logged["time/compute_total_s"] = self.compute.seconds
            if self.checkpoint_seconds is not None:
                logged["time/checkpoint_s"] = self.checkpoint_seconds
            self.latest = logged
        quality = observer.quality_if_due(self.step)
        self.rules.observe(self.step, quality | (logged if is_due else {}))
        logged |= quality
        if logged and observer.writer is not None:
            observer.writer.scalars(self.step, logged)
        observer.samples_if_due(self.step)
        return logged

    def _share_damage(self) -> None:
        """All ranks count what each has found; too much of it ends all."""
        damage = self.stream.damage
        damage.merge(self.team.gather(damage.state()))
        damage.check()

    def _epoch(self) -> float:
        return self.clips_seen / self.stream.samples_an_epoch

    def save(self, observer: Observer, saver: Saver) -> None:
        """Begins to save all that a resumed run needs to equal one that never stopped."""
        writer = observer.writer
        if writer is not None:
            writer.flush()
        self._share_damage()
        fragments = self.average.state_fragments()
        for engine in self.engines:
            fragments += engine.state_fragments()
        uploads = writer.upload if writer is not None else None  # metrics come before their mark
        saver.begin(self.step, fragments, run_state(self), before=uploads)
        self.saved_step = self.step

    def export(self) -> None:
        """Writes the averaged generator into the run folder."""
        with self.average.whole() as generator:
            if self.team.rank == 0:
                trained = TrainedGenerator(
                    generator=generator,
                    config=self.config,
                    step=self.step,
                    frame_rate_hz=self.stream.manifest.clip.frame_rate_hz,
                )
                export_generator(self.config.run.dir, trained)

    def say(self, text: str) -> None:
        """One line to the user."""
        if self.team.rank == 0:
            tqdm.write(text)


def progress_facts(logged: Mapping[str, float]) -> dict[str, str]:
    """The few of the logged numbers that a progress line shows."""
    shown = {
        "D": ("loss/discriminator", ".3f"),
        "G": ("loss/generator", ".3f"),
        "sign": ("score/sign", ".2f"),
        "clips_s": ("throughput/clips_per_s", ".1f"),
    }
    return {name: format(logged[tag], form) for name, (tag, form) in shown.items() if tag in logged}
