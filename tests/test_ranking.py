"""The order of configurations, who wins, and how sure that is."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tests.sweep_folders import BASE, COST, LR, METRIC, record, spec_of
from tune.ranking import Candidate, base_of, best_trial, judge, pareto_front, rank, winner
from tune.records import SweepSpec, TrialRecord


def ranked(records: Sequence[TrialRecord], spec: SweepSpec | None = None) -> list[Candidate]:
    return rank(spec or spec_of(), records, {LR: 2e-4})


def groups(records: Sequence[TrialRecord], spec: SweepSpec | None = None) -> list[str]:
    return [candidate.group for candidate in ranked(records, spec)]


def test_finished_ones_come_first_then_the_later_stopped_then_the_diverged() -> None:
    records = [
        record("failed", None, status="failed", step=0),
        record("diverged", 1.0, status="diverged", step=8),
        record("early", 2.0, status="stopped", step=4),
        record("late", 3.0, status="stopped", step=8),
        record("second", 50.0),
        record("first", 40.0),
        record("nan", math.nan),
    ]
    order = groups(records)
    assert order[:4] == ["first", "second", "late", "early"]
    assert order[4:] == ["diverged", "nan", "failed"]
    assert [c.state for c in ranked(records)][-3:] == ["diverged", "diverged", "unranked"]


def test_higher_is_better_where_the_sweep_says_so() -> None:
    spec = spec_of(metrics=[{"name": METRIC, "mode": "max"}])
    assert groups([record("a", 1.0), record("b", 2.0)], spec) == ["b", "a"]


def test_no_lucky_seed_wins() -> None:
    records = [
        record("lucky", 10.0, seed=0), record("lucky", 90.0, seed=1),
        record("steady", 30.0, seed=0), record("steady", 32.0, seed=1),
    ]  # fmt: skip
    best = ranked(records)[0]
    assert best.group == "steady" and best.means[METRIC] == 31.0
    assert best.spread == pytest.approx(math.sqrt(2))
    assert best_trial(spec_of(), best).seed == 0


def test_one_diverged_seed_makes_a_configuration_bad_and_a_fault_does_not() -> None:
    records = [
        record("risky", 10.0, seed=0), record("risky", 9.0, seed=1, status="diverged", step=4),
        record("faulty", 50.0, seed=0), record("faulty", None, seed=1, status="failed", step=0),
        record("sound", 40.0, seed=0), record("sound", 42.0, seed=1),
    ]  # fmt: skip
    assert groups(records) == ["sound", "faulty", "risky"]
    assert ranked(records)[1].state == "finished"


def test_the_base_has_a_value_for_every_key_of_the_space() -> None:
    candidates = ranked([record(BASE, 50.0), record("a", 40.0, overrides={LR: 1e-3})])
    base = base_of(candidates)
    assert base is not None and base.settings[LR] == 2e-4
    assert candidates[0].settings[LR] == 1e-3
    assert base.settings.keys() == candidates[0].settings.keys()


def test_nobody_wins_without_a_value() -> None:
    assert winner(ranked([])) is None
    assert winner(ranked([record("a", None, status="running", step=0)])) is None
    assert winner(ranked([record("a", 5.0, status="diverged", step=4)])) is None


def test_without_repeats_luck_can_t_be_told() -> None:
    assert judge(spec_of(), ranked([record("a", 1.0), record("b", 2.0)])) is None


def test_clear_and_unclear_winners_are_told_apart() -> None:
    def repeated(group: str, mean: float) -> list[TrialRecord]:
        return [record(group, mean + luck, seed=s) for s, luck in enumerate((-1.0, 0.0, 1.0))]

    clear = judge(spec_of(), ranked([*repeated("a", 10), *repeated(BASE, 50)]))
    assert clear is not None and clear.spread == pytest.approx(1.0)
    assert clear.first_again > 0.99 and clear.rivals == ()
    assert clear.by_chance is not None and clear.by_chance < 0.001
    unclear = judge(spec_of(), ranked([*repeated("a", 10), *repeated(BASE, 10.2)]))
    assert unclear is not None and 0.5 < unclear.first_again < 0.75
    # With one other configuration it is Student's one-sided test: t = 0.2 / sqrt(2 / 3), 4 degrees.
    assert unclear.rivals == (BASE,) and unclear.by_chance == pytest.approx(0.409, abs=0.01)


def test_the_stated_confidence_is_kept() -> None:
    """Over many sweeps of two configurations that differ by luck alone, whoever wins is said to be
    better than the other with more than 95 % in about 1 of 10 sweeps (it may be either)."""
    sure = 0
    for seed in range(200):
        luck = np.random.default_rng(seed).normal(size=(2, 3))
        records = [
            record(group, 50 + float(luck[i, s]), seed=s)
            for i, group in enumerate(("a", BASE))
            for s in range(3)
        ]
        verdict = judge(spec_of(), ranked(records))
        assert verdict is not None
        sure += verdict.first_again > 0.95
    assert sure <= 30  # 20 are expected; more than 30 have a chance of 1 %


def test_the_best_of_many_alike_is_rarely_said_to_beat_the_base() -> None:
    """The choice among 12 alike is accounted for: 1 sweep of 20 is mistaken, not every third."""
    mistaken = 0
    for seed in range(200):
        luck = np.random.default_rng(seed).normal(size=(13, 3))
        records = [
            record(group, 50 + float(luck[i, s]), seed=s)
            for i, group in enumerate((BASE, *(f"{n:04d}" for n in range(12))))
            for s in range(3)
        ]
        verdict = judge(spec_of(), ranked(records))
        assert verdict is not None
        mistaken += verdict.by_chance is not None and verdict.by_chance < 0.05
    assert mistaken <= 18  # 10 are expected; more than 18 have a chance of 1 %


def test_a_lead_over_the_base_counts_those_that_were_stopped() -> None:
    def chance(stopped: int) -> float:
        many = [
            record(f"s{n}", 60.0, seed=s, status="stopped", step=4)
            for n in range(stopped)
            for s in range(3)
        ]
        two = [
            record(group, mean + luck, seed=s)
            for group, mean in (("a", 48.0), (BASE, 50.0))
            for s, luck in enumerate((-1.0, 0.0, 1.0))
        ]
        verdict = judge(spec_of(), ranked([*two, *many]))
        assert verdict is not None and verdict.by_chance is not None
        return verdict.by_chance

    assert chance(20) > 1.5 * chance(0)


def test_the_pareto_front_holds_what_nothing_beats() -> None:
    spec = spec_of(metrics=[{"name": METRIC}, {"name": COST}], algorithm="tpe")
    points = {"good": (10.0, 9.0), "cheap": (50.0, 1.0), "middle": (20.0, 3.0), "bad": (30.0, 4.0)}
    records = [record(g, None, values={METRIC: q, COST: c}) for g, (q, c) in points.items()]
    front = [candidate.group for candidate in pareto_front(spec, ranked(records, spec))]
    assert front == ["good", "middle", "cheap"]
