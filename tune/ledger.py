"""The state of a sweep while it runs: every change of a trial is written to its record at once."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import ray

from distgan.errors import UserError
from tune.early_stopping import StoppingRule
from tune.keeping import losers, remove_large
from tune.plan import Job, Plan
from tune.progress import happened
from tune.records import BASE, SweepSpec, TrialRecord, write_record
from tune.training import UnmeasuredError

Tell = Callable[[str], None]


class Ledger:
    """Told by Tune's callbacks, in the order in which things happen."""

    def __init__(
        self,
        folder: str,
        spec: SweepSpec,
        plan: Plan,
        rule: StoppingRule,
        board: Any,
        at_a_time: int,
        tell: Tell,
    ) -> None:
        """
        Args:
            board: handle of the actor through which trials hear what is wanted of them.
            at_a_time: so many trials may have a job at once.
            tell: shows the user a line.
        """
        self.folder, self.spec, self.plan, self.rule = folder, spec, plan, rule
        self.board, self.at_a_time, self.tell = board, at_a_time, tell
        self.closed = False
        """No more trials start."""
        self.problem: UserError | None = None
        """Ends the sweep."""
        self._removed: set[str] = set()
        self._lock = threading.Lock()

    def records(self) -> list[TrialRecord]:
        with self._lock:
            return list(self.plan.records.values())

    def next_job(self) -> dict[str, Any] | None:
        """What a trial is told of its job; None if none can start now."""
        with self._lock:
            if self.closed or len(self.plan.active) >= self.at_a_time:
                return None
            job = self.plan.next_job()
            if job is None:
                return None
            write_record(self.folder, job.record)
            self._removed.discard(job.record.trial_id)
            return _as_config(job)

    def is_finished(self) -> bool:
        return self.closed or self.plan.is_finished()

    def end_with(self, problem: UserError) -> None:
        """Ends the sweep; trials that run end with a checkpoint."""
        self.problem = self.problem or problem
        self.closed = True

    def note_evaluation(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Writes it down, and asks the trial to stop if the algorithm says so."""
        with self._lock:
            step, values = int(result["step"]), dict(result["values"])
            seconds = float(result["seconds"])
            record = self.plan.records[trial_id]
            record = replace(record, step=step, values=values, seconds=seconds)
            self._write(record, active=True)
        if record.step >= self.spec.max_steps:
            return
        # The rule learns from the base configuration, too, which always comes to its end: else
        # nobody could say whether anything beat it.
        is_worse = self.rule.stops(trial_id, step, values[self.spec.metrics[0].name])
        if is_worse and record.group != BASE:
            reason = f"{self.spec.algorithm.rpartition('+')[2]}: others do better at step {step}"
            ray.get(self.board.stop.remote(trial_id, reason))

    def note_end(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial has ended its job, with all that it had to write written."""
        state, reason = str(result["state"]), str(result["reason"])
        with self._lock:
            record = self.plan.records[trial_id]
            seconds = max(record.seconds, float(result["seconds"]))
            step = max(record.step, int(result["step"]))  # of one that diverged: where
            record = replace(record, seconds=seconds, step=step)
            if state == "unmeasured":
                self.end_with(UnmeasuredError(reason))
            if state in ("finished", "stopped", "diverged", "failed"):
                record = replace(record, status=state, reason=reason)  # type: ignore[arg-type]
                self.tell(happened(record))
            self._write(record, active=False)
        self.remove_losers()

    def note_failure(self, trial_id: str, faults: int) -> None:
        """Tune has given a trial up."""
        text = ray.get(self.board.fault.remote(trial_id))
        with self._lock:
            reason = (
                f"{text} (fault {faults} of this trial, tune.max_failures={self.spec.max_failures})"
            )
            record = replace(self.plan.records[trial_id], status="failed", reason=reason)
            self.tell(happened(record))
            self._write(record, active=False)
        self.remove_losers()

    def note_recovery(self, trial_id: str, faults: int) -> None:
        """Tune starts a trial again after a fault."""
        text = ray.get(self.board.fault.remote(trial_id))
        self.tell(
            f"{trial_id}: {text} (fault {faults}, allowed are {self.spec.max_failures}); "
            "going on from its newest checkpoint"
        )

    def remove_losers(self) -> None:
        """What is large of those that ended and are not among the best."""
        with self._lock:
            records = list(self.plan.records.values())
        lost = losers(self.spec, records, self.plan.space.flat_base)
        new = [record for record in lost if record.trial_id not in self._removed]
        remove_large(self.folder, new)
        self._removed |= {record.trial_id for record in new}

    def _write(self, record: TrialRecord, *, active: bool) -> None:
        write_record(self.folder, record)
        self.plan.note(record, active=active)


def _as_config(job: Job) -> dict[str, Any]:
    names = ("trial_id", "overrides", "seed", "parent")
    record = asdict(job.record)
    return {name: record[name] for name in names} | {
        "until_step": job.until_step,
        "parent_step": job.parent_step,
    }
