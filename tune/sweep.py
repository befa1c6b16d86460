"""A sweep: Ray Tune runs its trials, and this process keeps their records.

Ray Tune's own state is never read back: a sweep that is started again in its folder goes on from
the records of its trials and from their checkpoints. The command's main thread watches, so that
Ctrl-C lets all trials end with a checkpoint.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune as ray_tune

from cluster.board import on_node
from cluster.ray_cluster import connected
from cluster.ray_storage import ray_storage
from distgan import storage
from distgan.config import Config
from distgan.data.manifest import read_manifest
from distgan.data.stream import check_fits
from distgan.errors import DistganError, DivergedError, UserError
from distgan.metrics.writer import METRICS_NAME, read_metrics
from distgan.run_folder import StopSignals, alone_in
from tune.algorithms import check_algorithm, stopping_rule
from tune.early_stopping import StoppingRule
from tune.keeping import take_back
from tune.ledger import Ledger
from tune.needs import placement, trials_at_a_time
from tune.plan import Plan
from tune.population import read_generations, write_generations
from tune.progress import table
from tune.ray_side import LedgerCallback, LedgerSearcher, keep_credentials_here
from tune.records import TUNE, SweepSpec, TrialRecord, read_sweep, trial_folder, write_record
from tune.settings import evaluation_steps, save_settings, start_or_resume
from tune.space import Space
from tune.training import Train, UnmeasuredError
from tune.trial import Board, Trial

_POLL_S = 0.5
_TABLE_S = 60.0

# Tune reads these in the process that starts it. Its own log files, signal handlers and checks have
# no use here, and its directories none for trials.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class SweepOutcome:
    """How this start of a sweep ended."""

    records: list[TrialRecord]
    signal: int | None
    """The one that ended it, if it was a signal."""
    is_complete: bool
    """No trial is left to train."""

    def refuse_all_bad(self) -> None:
        """Raises if nothing came of a complete sweep.

        Raises:
            DivergedError: every trial has diverged.
            DistganError: every trial has failed or diverged.
        """
        tried = [record for record in self.records if record.status != "pruned"]
        if not self.is_complete or any(r.status not in ("diverged", "failed") for r in tried):
            return
        kind = DivergedError if all(r.status == "diverged" for r in tried) else DistganError
        first = f"; the first one: {tried[0].reason}" if tried else ""
        raise kind(f"all {len(tried)} trials ended badly{first}")


def run_sweep(config: Config, spec: SweepSpec, train: Train | None = None) -> SweepOutcome:
    """Runs, or goes on with, the sweep in `config.run.dir`.

    Args:
        train: trains each trial instead of what `launch.py train` would take.

    Raises:
        UserError: bad input, a metric that no trial reports, or the cluster has no room.
    """
    storage.configure(config.storage)
    folder = config.run.dir
    space = Space(spec.space, config)
    check_algorithm(spec, space)
    _check_data(config)
    with contextlib.ExitStack() as stack:
        start_or_resume(config, spec)
        stack.enter_context(alone_in(folder))
        for name, value in _TUNE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Without its dashboard, Ray keeps the places of workers whose trial was killed.
        stack.enter_context(connected(dashboard=bool(config.cluster.num_workers)))
        signals = stack.enter_context(StopSignals().watching())
        at_a_time = trials_at_a_time(config, spec)
        save_settings(config, spec)
        return _Sweep(config, spec, space, at_a_time, train).run(signals)


class _Sweep:
    """One start of a sweep, connected to Ray."""

    def __init__(
        self, config: Config, spec: SweepSpec, space: Space, at_a_time: int, train: Train | None
    ) -> None:
        self.config, self.spec, self.train = config, spec, train
        self.folder = config.run.dir
        records = read_sweep(self.folder)[1]
        rule = stopping_rule(spec, evaluation_steps(config, spec))
        _tell_again(rule, self.folder, records, spec)
        plan = Plan(
            spec, space, records, read_generations(self.folder),
            store=lambda generations: write_generations(self.folder, generations),
        )  # fmt: skip
        for record in plan.prune():
            write_record(self.folder, record)
        here = on_node(ray.get_runtime_context().get_node_id())
        actor: Any = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here)
        self.board = actor.remote()
        self.ledger = Ledger(self.folder, spec, plan, rule, self.board, at_a_time, _say)
        self.error: BaseException | None = None

    def run(self, signals: StopSignals) -> SweepOutcome:
        """Returns when no trial runs any more."""
        total = (self.spec.num_trials + 1) * self.spec.repeats
        if not self.ledger.is_finished():
            tuner = self._tuner()
            thread = threading.Thread(target=self._fit, args=(tuner,), daemon=True, name="tune")
            thread.start()
            self._watch(thread, signals, total)
        if self.error is not None:
            raise self.error
        records = self.ledger.records()
        storage.remove_tree(storage.join(self.folder, TUNE))
        if isinstance(self.ledger.problem, UnmeasuredError):
            take_back(self.folder, self.spec, records)
        if self.ledger.problem is not None:
            raise self.ledger.problem
        self.ledger.remove_losers()
        _say(table(self.spec, records, total))
        complete = len(records) >= total and all(r.status != "running" for r in records)
        return SweepOutcome(records, signals.received, complete)

    def _watch(self, thread: threading.Thread, signals: StopSignals, total: int) -> None:
        started = shown = time.monotonic()
        while thread.is_alive():
            thread.join(_POLL_S)
            now = time.monotonic()
            late = self.spec.max_seconds and now - started > self.spec.max_seconds
            if not self.ledger.closed and (signals.received is not None or late):
                why = f"after {now - started:.0f} s" if late else "on a signal"
                _say(f"stopping {why}: trials end with a checkpoint; the same command goes on")
                self.ledger.closed = True
            if self.ledger.closed:
                ray.get(self.board.interrupt.remote())
            if now - shown > _TABLE_S:
                shown = now
                _say(table(self.spec, self.ledger.records(), total))

    def _tuner(self) -> ray_tune.Tuner:
        path, filesystem = ray_storage(self.folder)
        trainable = ray_tune.with_parameters(
            Trial,
            folder=self.folder,
            base=self.config.model_dump(mode="json"),
            spec=self.spec.model_dump(mode="json"),
            board=self.board,
            train=self.train,
        )
        return ray_tune.Tuner(
            ray_tune.with_resources(trainable, placement(self.config, self.spec)),
            tune_config=ray_tune.TuneConfig(
                search_alg=LedgerSearcher(self.ledger),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray_tune.RunConfig(
                name=f"start-{time.time_ns()}",
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray_tune.FailureConfig(max_failures=self.spec.max_failures),
                callbacks=[LedgerCallback(self.ledger)],
                verbose=0,
            ),
        )

    def _fit(self, tuner: ray_tune.Tuner) -> None:
        keep_credentials_here()
        # What befalls trials is told by the ledger; Tune would tell it again, with tracebacks.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        try:
            tuner.fit()
        except BaseException as error:  # noqa: BLE001  # raised again by the main thread
            self.error = error


def _tell_again(
    rule: StoppingRule, folder: str, records: Sequence[TrialRecord], spec: SweepSpec
) -> None:
    """What the rule was told before the sweep was interrupted; what it says now does not count."""
    name = spec.metrics[0].name
    told = []
    for record in records:
        path = storage.join(trial_folder(folder, record.trial_id), METRICS_NAME)
        if storage.exists(path):
            lines = [line for line in read_metrics(path) if name in line]
            told += [(int(line["step"]), record.trial_id, line[name]) for line in lines]
    for step, trial_id, value in sorted(told, key=lambda each: each[:2]):
        if step < spec.max_steps:
            rule.stops(trial_id, step, value)


def _check_data(config: Config) -> None:
    """Raises `UserError` before anything starts if the data set does not fit."""
    if not config.data.shards:
        raise UserError("data.shards is not set: give the folder that `launch.py prepare` wrote")
    manifest, _ = read_manifest(config.data.shards)
    check_fits(manifest, config.data, config.data.shards)


def _say(text: str) -> None:
    print(text, flush=True)
