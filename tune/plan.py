"""Which trial starts next: what the algorithm suggests, what is repeated, what is taken up again.

A plan knows nothing of Ray. It is told how trials are (their records) and asked for jobs; made anew
from the records of an interrupted sweep, it goes on where that was: trials that ended are not
started again, and those that had not are started first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tune.algorithms import suggest
from tune.population import Generation, boundaries, decide
from tune.records import BASE, SweepSpec, TrialRecord
from tune.space import Overrides, Space


@dataclass(frozen=True, kw_only=True)
class Job:
    """One start of a trial."""

    record: TrialRecord
    """As it is before the start."""
    until_step: int = 0
    """The trial waits after its first evaluation from this step on; 0: it trains to its end."""
    parent_step: int = 0
    """It starts from `record.parent`'s checkpoint of this step; 0: it goes on from its own."""


class Plan:
    """Asked for jobs, told of records."""

    def __init__(
        self,
        spec: SweepSpec,
        space: Space,
        records: Sequence[TrialRecord] = (),
        generations: Sequence[Generation] = (),
        store: Callable[[Sequence[Generation]], None] = lambda generations: None,
    ) -> None:
        """
        Args:
            records: of trials that an interrupted sweep started.
            generations: of pbt, what it decided.
            store: called with all decisions before any of the last ones is acted on.
        """
        self.spec, self.space, self.store = spec, space, store
        self.records = {record.trial_id: record for record in records}
        self.generations = list(generations)
        self.boundaries = boundaries(spec) if spec.algorithm == "pbt" else []
        self.active: set[str] = set()
        """Trials that have a job now."""

    def note(self, record: TrialRecord, *, active: bool) -> None:
        """How a trial is now; `active`: it still works on its job."""
        self.records[record.trial_id] = record
        if not active:
            self.active.discard(record.trial_id)

    def prune(self) -> list[TrialRecord]:
        """Of a grid, the impossible combinations and those that are the same training as one before
        (the base configuration is the first), which are noted here as pruned."""
        if "grid" not in self.spec.algorithm:
            return []
        pruned = []
        trained = {self.space.identity(self.space.base_overrides): BASE}
        for group, overrides in zip(self._groups(), self.space.grid(), strict=True):
            first = trained.setdefault(self.space.identity(overrides), group)
            problem = (
                self.space.problem(self.space.reduced(overrides))
                if first == group
                else f"the same training as {first}: it differs in nothing that counts"
            )
            for seed in self._seeds() if problem else ():
                record = self._new(group, seed, overrides)
                if record.trial_id not in self.records:
                    pruned.append(replace(record, status="pruned", reason=problem))
        self.records |= {record.trial_id: record for record in pruned}
        return pruned

    def next_job(self) -> Job | None:
        """None: nothing can start before another trial has ended its job."""
        job = self._next_member() if self.spec.algorithm == "pbt" else None
        job = job or self._next_trial()
        if job is not None:
            self.records[job.record.trial_id] = job.record
            self.active.add(job.record.trial_id)
        return job

    def is_finished(self) -> bool:
        """Whether no job will come any more."""
        if len(self.generations) < len(self.boundaries):
            return False
        wanted = [_name(group, seed) for group in self._all_groups() for seed in self._seeds()]
        return all(self._has_ended(name) or name in self.active for name in wanted)

    def _next_trial(self) -> Job | None:
        groups = [BASE] if self.spec.algorithm == "pbt" else self._all_groups()
        for group in groups:
            for seed in self._seeds():
                name = _name(group, seed)
                if self._has_ended(name) or name in self.active:
                    continue
                return Job(record=self.records.get(name) or self._new(group, seed))
        return None

    def _next_member(self) -> Job | None:
        """Of a population: all members train up to the same step before any goes on."""
        while True:
            last = self.generations[-1] if self.generations else Generation(step=0)
            done = len(self.generations) == len(self.boundaries)
            until = 0 if done else self.boundaries[len(self.generations)]
            waiting = True
            for group in self._groups():
                record = self._member(group, last)
                if record.trial_id in self.active:
                    waiting = False
                elif record.status == "running" and not (until and record.step >= until):
                    change = last.changes.get(record.trial_id)
                    parent_step = change.parent_step if change else 0
                    return Job(record=record, until_step=until, parent_step=parent_step)
            if done or not waiting:
                return None
            members = [self._member(group, last) for group in self._groups()]
            self.generations.append(decide(self.spec, self.space, until, members))
            self.store(self.generations)

    def _member(self, group: str, last: Generation) -> TrialRecord:
        """As it is, with the last change applied: a changed one is where its parent was."""
        name = _name(group, self.spec.seed)
        record = self.records.get(name) or self._new(group, self.spec.seed)
        change = last.changes.get(name)
        if change is None or (record.overrides, record.parent) == (change.overrides, change.parent):
            return record
        return replace(
            record,
            overrides=change.overrides,
            parent=change.parent,
            status="running",
            reason="",
            step=change.parent_step,
            values=change.parent_values,
        )

    def _new(self, group: str, seed: int, overrides: Overrides | None = None) -> TrialRecord:
        return TrialRecord(
            trial_id=_name(group, seed),
            overrides=self._overrides(group) if overrides is None else overrides,
            seed=seed,
            group=group,
            status="running",
            reason="",
            step=0,
            values={},
            seconds=0.0,
        )

    def _overrides(self, group: str) -> Overrides:
        history: dict[str, list[TrialRecord]] = {}
        for record in self.records.values():
            history.setdefault(record.group, []).append(record)
        if group in history:
            return history[group][0].overrides
        if group == BASE:
            return self.space.base_overrides
        in_order = [history[name] for name in sorted(history)]
        return suggest(self.spec, self.space, int(group), in_order)

    def _has_ended(self, name: str) -> bool:
        return name in self.records and self.records[name].status != "running"

    def _groups(self) -> list[str]:
        return [f"{index:04d}" for index in range(self.spec.num_trials)]

    def _all_groups(self) -> list[str]:
        return [BASE, *self._groups()]

    def _seeds(self) -> range:
        return range(self.spec.seed, self.spec.seed + self.spec.repeats)


def _name(group: str, seed: int) -> str:
    return f"{group}-seed{seed}"
