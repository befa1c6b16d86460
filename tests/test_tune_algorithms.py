"""What algorithms suggest, stop and change; and the plan that a sweep follows, without Ray."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from distgan.config_loading import load_config
from distgan.errors import UserError
from tests.tiny import TINY
from tune.algorithms import check_algorithm, suggest
from tune.early_stopping import stopping_rule
from tune.plan import Job, Plan
from tune.population import Generation, decide
from tune.records import BASE, MetricSpec, SweepSpec, TrialRecord
from tune.space import Space

BASE_CONFIG = load_config(overrides=[*TINY, "train.max_steps=90"])
LR, GAMMA = "optim.generator.lr", "loss.gamma"
TREE: dict[str, Any] = {LR: {"loguniform": [1e-5, 1e-1]}, GAMMA: {"choice": [1, 5, 10]}}
GRID: dict[str, Any] = {GAMMA: {"grid": [1, 2]}, "model.attention.heads": {"grid": [1, 2]}}


def make(tree: dict[str, Any] = TREE, **settings: Any) -> tuple[SweepSpec, Space]:
    settings = {"num_trials": 6, "max_steps": 90} | settings
    spec = SweepSpec(space=tree, **settings)
    return spec, Space(tree, BASE_CONFIG)


def loss_of(overrides: Any) -> float:
    """Best at a learning rate of 1e-3."""
    return abs(math.log10(overrides[LR]) + 3) + 0.01 * overrides[GAMMA]


def ended(job: Job, value: float = 1.0, **changes: Any) -> TrialRecord:
    step = job.until_step or 90
    status = "running" if job.until_step else "finished"
    values = {MetricSpec().name: value}
    return replace(job.record, **({"status": status, "step": step, "values": values} | changes))


def play(
    plan: Plan, value: Callable[[Job], float] = lambda job: loss_of(job.record.overrides),
    jobs: int = 1000,
) -> list[Job]:  # fmt: skip
    """One trial at a time, to the end of the plan or of so many jobs."""
    done: list[Job] = []
    while len(done) < jobs and (job := plan.next_job()) is not None:
        plan.note(ended(job, value(job)), active=False)
        done.append(job)
    return done


def names(jobs: Sequence[Job]) -> list[str]:
    return [job.record.trial_id for job in jobs]


def test_a_plan_starts_the_base_and_every_configuration_once() -> None:
    spec, space = make(num_trials=3)
    plan = Plan(spec, space)
    jobs = play(plan)
    assert names(jobs) == ["base-seed0", "0000-seed0", "0001-seed0", "0002-seed0"]
    assert jobs[0].record.overrides == {LR: 2e-4, GAMMA: 10.0}
    assert plan.is_finished() and plan.next_job() is None


def test_repeats_differ_in_their_seed_alone() -> None:
    spec, space = make(num_trials=2, repeats=3, seed=5)
    jobs = play(Plan(spec, space))
    assert len(jobs) == 9
    for group in (BASE, "0000", "0001"):
        of_group = [job.record for job in jobs if job.record.group == group]
        assert [record.seed for record in of_group] == [5, 6, 7]
        assert len({str(record.overrides) for record in of_group}) == 1


def test_several_trials_may_run_at_once_but_each_once() -> None:
    spec, space = make(num_trials=3)
    plan = Plan(spec, space)
    jobs = [plan.next_job() for _ in range(5)]
    assert [job is None for job in jobs] == [False] * 4 + [True]
    assert plan.is_finished()


@pytest.mark.parametrize("algorithm", ["random", "tpe", "grid", "asha"])
@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_plan_made_anew_goes_on_as_if_nothing_had_happened(algorithm: str, cut: int) -> None:
    tree = GRID if algorithm == "grid" else TREE
    spec, space = make(tree, num_trials=4 if algorithm == "grid" else 12, algorithm=algorithm)
    value = (
        (lambda job: 1.0) if algorithm == "grid" else (lambda job: loss_of(job.record.overrides))
    )
    whole = play(Plan(spec, space), value)

    first = Plan(spec, space)
    before = play(first, value, jobs=cut)
    interrupted = first.next_job()  # runs when the kill comes
    again = Plan(spec, space, list(first.records.values()))
    after = play(again, value)
    if interrupted is not None:
        assert after[0].record == interrupted.record
    assert names(before) + names(after) == names(whole)
    assert [j.record.overrides for j in [*before, *after]] == [j.record.overrides for j in whole]


def test_random_suggestions_do_not_depend_on_results_and_tpe_s_do() -> None:
    for algorithm, same in (("random", True), ("tpe", False)):
        spec, space = make(num_trials=20, algorithm=algorithm)
        one = play(Plan(spec, space))
        other = play(Plan(spec, space), lambda job: -loss_of(job.record.overrides))
        assert ([j.record.overrides for j in one] == [j.record.overrides for j in other]) == same


def test_tpe_looks_where_it_was_good() -> None:
    late = {"tpe": 0.0, "random": 0.0}
    for algorithm in late:
        for seed in range(3):
            spec, space = make(num_trials=30, algorithm=algorithm, seed=seed)
            jobs = play(Plan(spec, space))
            late[algorithm] += sum(loss_of(job.record.overrides) for job in jobs[-15:])
    assert late["tpe"] < 0.9 * late["random"]


def test_tpe_keeps_away_from_bad_ends() -> None:
    spec, space = make(num_trials=30, algorithm="tpe")
    plan = Plan(spec, space)
    while (job := plan.next_job()) is not None:
        high = job.record.overrides[LR]
        assert isinstance(high, float)
        bad = {"status": "diverged", "values": {}} if high > 1e-3 else {}
        plan.note(ended(job, 1.0, **bad), active=False)
    lrs = [r.overrides[LR] for r in plan.records.values() if r.group != BASE]
    late_lrs = [lr for lr in lrs[-15:] if isinstance(lr, float)]
    assert sum(lr > 1e-3 for lr in late_lrs) <= 5  # half of the space


def test_tpe_takes_several_metrics_lists_and_results_that_are_not_finite() -> None:
    tree = {LR: TREE[LR], "model.attention.resolutions": {"choice": [[8], [4], [8, 4]]},
            "loss.gamma_final": {"quniform": [0, 1, 0.25]},
            "model.attention.heads": {"randint": [1, 4]}}  # fmt: skip
    metrics = (MetricSpec(name="a"), MetricSpec(name="b", mode="max"))
    spec, space = make(tree, num_trials=15, algorithm="tpe", metrics=metrics)
    plan = Plan(spec, space)
    while (job := plan.next_job()) is not None:
        lr = job.record.overrides[LR]
        assert isinstance(lr, float)
        values = {"a": lr, "b": math.nan if len(plan.records) == 8 else 1 / lr}
        plan.note(ended(job, values=values), active=False)
    assert len(plan.records) == 16


def test_tpe_searches_ranges_of_any_size() -> None:
    tree = {
        GAMMA: {"quniform": [1, 20, 1e-9]},
        "model.attention.heads": {"randint": [1, 10**9]},
        KIND: {"choice": ["additive"]},
        "model.attention.head_dim": {"choice": [8]},
    }
    spec, space = make(tree, num_trials=9, algorithm="tpe")
    assert len(play(Plan(spec, space), gamma_of)) == 10


def test_impossible_combinations_of_a_grid_are_pruned_with_their_reason() -> None:
    tree = {"model.attention.heads": {"grid": [2, 3]}, "model.attention.head_dim": {"grid": [0, 8]}}
    spec, space = make(tree, num_trials=4, algorithm="grid")
    plan = Plan(spec, space)
    pruned = plan.prune()
    assert [record.trial_id for record in pruned] == ["0002-seed0"]
    assert "does not divide" in pruned[0].reason and pruned[0].status == "pruned"
    assert names(play(plan, lambda job: 1.0)) == [
        "base-seed0", "0000-seed0", "0001-seed0", "0003-seed0",
    ]  # fmt: skip
    assert plan.is_finished()


KIND, WINDOW = "model.attention.kind", "model.attention.window"
FEW: dict[str, Any] = {
    KIND: {"choice": ["none", "additive", "window"]},
    WINDOW: {"choice": [[1, 3, 3], [0, 3, 3]]},
    GAMMA: {"choice": [1, 2]},
}


def gamma_of(job: Job) -> float:
    return float(str(job.record.overrides[GAMMA]))


@pytest.mark.parametrize("algorithm", ["grid", "grid+asha", "grid+median"])
def test_a_grid_s_twins_are_pruned_and_named(algorithm: str) -> None:
    tree = {KIND: {"grid": ["none", "self"]}, WINDOW: {"grid": [[1, 3, 3], [0, 3, 3]]}}
    spec, space = make(tree, num_trials=4, algorithm=algorithm)
    assert space.base_overrides[KIND] == "self"
    plan = Plan(spec, space)
    pruned = {record.group: record.reason for record in plan.prune()}
    assert set(pruned) == {"0001", "0002", "0003"}
    assert "the same training as 0000" in pruned["0001"]
    assert "the same training as base" in pruned["0002"]
    assert names(play(plan, lambda job: 1.0)) == ["base-seed0", "0000-seed0"]
    assert plan.is_finished()


@pytest.mark.parametrize("algorithm", ["random", "asha", "tpe", "tpe+median"])
def test_nothing_is_trained_twice_and_nothing_is_left_out(algorithm: str) -> None:
    """Of 12 combinations 8 are unlike: the window counts for one of three kinds."""
    spec, space = make(FEW, num_trials=8, algorithm=algorithm)
    assert space.count(100) == 8
    jobs = play(Plan(spec, space), gamma_of)
    assert len({space.identity(job.record.overrides) for job in jobs}) == len(jobs) == 9
    for job in jobs:  # what has no say is not said
        if job.record.overrides[KIND] != "window":
            assert job.record.overrides[WINDOW] == space.base_overrides[WINDOW]
    first = Plan(spec, space)
    before = play(first, gamma_of, jobs=6)
    after = play(Plan(spec, space, list(first.records.values())), gamma_of)
    assert [j.record.overrides for j in [*before, *after]] == [j.record.overrides for j in jobs]
    with pytest.raises(UserError, match="every combination of the search space has been tried"):
        play(Plan(spec.model_copy(update={"num_trials": 9}), space), gamma_of)


def test_members_of_a_population_may_be_equal() -> None:
    spec, space = make({GAMMA: {"choice": [1, 2]}}, algorithm="pbt", num_trials=4)
    assert len({job.record.trial_id for job in play(Plan(spec, space), gamma_of)}) == 5


def test_tpe_hears_of_trials_whose_inert_keys_lie_outside_of_the_space() -> None:
    tree = {LR: TREE[LR], KIND: {"choice": ["none", "additive"]},
            WINDOW: {"choice": [[1, 3, 3], [0, 3, 3]]}}  # fmt: skip
    spec, space = make(tree, num_trials=20, algorithm="tpe")
    assert not space.keys[WINDOW].contains(space.base_overrides[WINDOW])

    def rate(job: Job) -> float:
        return math.log10(float(str(job.record.overrides[LR])))

    low = play(Plan(spec, space), rate)[-10:]
    high = play(Plan(spec, space), lambda job: -rate(job))[-10:]
    assert sum(map(rate, low)) / 10 < -4 < -2 < sum(map(rate, high)) / 10  # of -5 to -1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "grid"}, "a grid can't hold all of loguniform"),
        ({"algorithm": "grid+asha"}, "a grid can't hold all of loguniform"),
        ({"algorithm": "grid", "tree": GRID, "num_trials": 9}, "the grid has 4 combinations"),
        ({"algorithm": "pbt", "tree": GRID}, "model.attention.heads can't change then"),
        ({"algorithm": "pbt", "num_trials": 3}, "needs a population of 4"),
        ({"algorithm": "pbt", "repeats": 2}, "use --repeats 1"),
        ({"algorithm": "pbt", "perturbation_steps": 90}, "nothing would be copied"),
        ({"algorithm": "asha", "grace_steps": 90}, "no trial would be stopped"),
        (
            {"algorithm": "random", "metrics": (MetricSpec(name="a"), MetricSpec(name="b"))},
            "use --algorithm tpe",
        ),
    ],
)
def test_what_an_algorithm_can_not_do_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        check_algorithm(*make(settings.pop("tree", TREE), **settings))
    assert words in str(error.value)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("algorithm", ["asha", "median"])
def test_the_worse_trials_are_stopped(algorithm: str, mode: str) -> None:
    spec, _ = make(algorithm=algorithm, metrics=(MetricSpec(mode=mode),), max_steps=90)
    rule = stopping_rule(spec, 10)
    sign = 1 if mode == "min" else -1
    for trial, loss in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)):
        for step in range(10, 90, 10):
            if rule.stops(trial, step, sign * loss):
                break
    assert not any(rule.stops("good", step, sign * 0.5) for step in range(10, 90, 10))
    for name, loss in (("bad", 9.0), ("nan", math.nan)):
        stopped = next(step for step in range(10, 90, 10) if rule.stops(name, step, sign * loss))
        assert stopped == (10 if algorithm == "asha" else 30)
        rule.stops(name, stopped + 10, sign * loss)  # it bears to hear more


def member(name: str, value: float, **changes: Any) -> TrialRecord:
    record = TrialRecord(
        trial_id=name, overrides={LR: 1e-3, GAMMA: 5.0}, seed=0, group=name, status="running",
        reason="", step=30, values={MetricSpec().name: value}, seconds=0.0,
    )  # fmt: skip
    return replace(record, **changes)


def test_the_worst_quarter_copies_the_best_and_so_do_diverged_members() -> None:
    spec, space = make(algorithm="pbt", num_trials=8)
    members = [member(f"m{index}", float(index)) for index in range(7)]
    members.append(member("m7", 0.0, status="diverged", step=20))
    changes = decide(spec, space, 30, members).changes
    assert set(changes) == {"m5", "m6", "m7"}
    assert {change.parent for change in changes.values()} <= {"m0", "m1"}
    for change in changes.values():
        assert change.parent_step == 30
        assert change.overrides != members[0].overrides
        assert all(space.keys[key].contains(value) for key, value in change.overrides.items())
    assert decide(spec, space, 30, members[::-1]).changes == changes  # the order does not count


def test_a_population_trains_in_generations_and_goes_on_after_a_kill() -> None:
    spec, space = make(algorithm="pbt", num_trials=4, perturbation_steps=30)
    stored: list[Sequence[Generation]] = []
    plan = Plan(spec, space, store=lambda generations: stored.append(list(generations)))
    whole = play(plan)
    assert plan.is_finished()
    assert [job.until_step for job in whole] == [30] * 4 + [60] * 4 + [0] * 5
    assert [generation.step for generation in stored[-1]] == [30, 60]
    copies = [job for job in whole if job.parent_step]
    assert len(copies) == 2 and [job.parent_step for job in copies] == [30, 60]
    assert copies[0].record.parent and copies[0].record.step == 30

    for cut in range(len(whole)):
        decided: list[Sequence[Generation]] = [[]]
        first = Plan(spec, space, store=lambda given, kept=decided: kept.append(list(given)))
        before = play(first, jobs=cut)
        first.next_job()
        again = Plan(spec, space, list(first.records.values()), decided[-1])
        after = play(again)
        assert [j.record.overrides for j in (*before, *after)] == [
            j.record.overrides for j in whole
        ], cut
        assert names([*before, *after]) == names(whole)


def test_a_diverged_member_comes_back_as_a_copy() -> None:
    spec, space = make(algorithm="pbt", num_trials=4, perturbation_steps=30)
    plan = Plan(spec, space)
    for _ in range(4):
        job = plan.next_job()
        assert job is not None
        bad = {"status": "diverged", "values": {}, "step": 0}
        first = job.record.trial_id == "0000-seed0"
        plan.note(ended(job, float(job.record.group), **(bad if first else {})), active=False)
    jobs = {job.record.trial_id: job for job in (plan.next_job(), plan.next_job()) if job}
    revived = jobs["0000-seed0"]
    assert revived.parent_step == 30 and revived.record.parent == "0001-seed0"
    assert revived.record.status == "running"


def test_suggestions_are_those_of_the_plan() -> None:
    spec, space = make(num_trials=3)
    jobs = play(Plan(spec, space))
    assert [suggest(spec, space, index, []) for index in range(3)] == [
        job.record.overrides for job in jobs[1:]
    ]


@pytest.mark.parametrize("algorithm", ["grid", "grid+asha", "grid+median"])
def test_a_grid_is_suggested_in_its_order(algorithm: str) -> None:
    spec, space = make(GRID, num_trials=4, algorithm=algorithm)
    assert [suggest(spec, space, index, []) for index in range(4)] == space.grid()
