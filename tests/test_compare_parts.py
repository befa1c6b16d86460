"""The comparison's parts: equal budgets, matched parameters, and what is called better."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from distgan.compare.matching import KIND, KNOB, differences, known_kinds, match
from distgan.compare.plan import Plan, load_plan, make_plan, refuse_changes, save_plan
from distgan.compare.statistics import (
    Course,
    common_time,
    compare_pairs,
    of_whole_runs,
    smallest_visible_ratio,
    spread,
)
from distgan.compare.wording import verdict
from distgan.config import Config
from distgan.config_loading import flatten, load_config, with_values
from distgan.errors import UserError
from tests.tiny import TINY


def tiny_config(*more: str) -> Config:
    return load_config(overrides=(*TINY, *more))


def plan_of(config: Config, **changes: Any) -> Plan:
    asked: dict[str, Any] = {
        "kinds": ("self", "none"), "num_seeds": 2, "steps": 8, "evaluations": 2,
        "tolerance": 0.05, "demo_data": False,
    }  # fmt: skip
    return make_plan(config, **(asked | changes))


@pytest.mark.parametrize("preset", ["tiny", "demo"])
def test_all_kinds_get_equally_many_parameters(preset: str) -> None:
    config = tiny_config() if preset == "tiny" else load_config(preset)
    matched = match(config, known_kinds(), 0.05)
    sizes = [kind.parameters for kind in matched]
    assert max(sizes) / min(sizes) <= 1.01
    for networks in zip(*((k.generator_parameters, k.discriminator_parameters) for k in matched),
                        strict=True):  # fmt: skip
        assert max(networks) / min(networks) <= 1.05
    assert {kind.kind for kind in matched if kind.mlp_width == 0}, "the largest keeps its width"


def test_runs_differ_in_nothing_but_the_attention() -> None:
    plan = plan_of(tiny_config("seed=5"), kinds=known_kinds(), num_seeds=3)
    assert plan.seeds == (5, 6, 7)
    for seed in plan.seeds:
        configs = [flatten(plan.run_config("/out", kind, seed)) for kind in plan.kinds]
        folders = {config.pop("run.dir") for config in configs}
        assert len(folders) == len(configs)
        for key in configs[0].keys() - {KIND, KNOB}:
            assert len({repr(config[key]) for config in configs}) == 1, key
        assert [config[KIND] for config in configs] == list(known_kinds())
        assert {config["seed"] for config in configs} == {seed}


def test_nothing_ends_a_run_before_its_budget() -> None:
    config = tiny_config(
        "stop.max_epochs=1", "stop.max_seconds=3", "stop.target=1e9", "stop.plateau_steps=4",
        "log.proxy_interval_steps=4",
    )  # fmt: skip
    plan = plan_of(config, steps=24, evaluations=3)
    stop, log = plan.config.stop, plan.config.log
    assert (stop.max_epochs, stop.max_seconds, stop.target, stop.plateau_steps) == (0, 0, None, 0)
    assert plan.config.train.max_steps == 24 and log.proxy_interval_steps == 8
    assert 8 % log.interval_steps == 0, "the clock is logged with each evaluation"


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        ({"kinds": ("self",)}, (), "at least two"),
        ({"kinds": ("self", "selfish")}, (), "'selfish' is no kind of attention; known: none, add"),
        ({"kinds": ("self", "self")}, (), "twice"),
        ({"num_seeds": 0}, (), "--seeds 0"),
        ({"steps": 9}, (), "take 8 or 10 steps"),
        ({"steps": 1}, (), "less than --evaluations 2"),
        ({"evaluations": 1}, (), "at least 2"),
        ({}, ("run.init_from=/a/run",), "run.init_from"),
        ({}, ("cluster.num_workers=2",), "--parallel N"),
        ({}, ("model.attention.resolutions=[]",), "no level has attention"),
        ({"kinds": ("self", "window")}, ("model.attention.window=[9,9,9]",), "window does not fit"),
        ({"kinds": ("self", "sparse")}, ("model.attention.density=0",), "sparse does not fit"),
    ],
)
def test_what_makes_no_comparison_is_refused(
    changes: dict[str, Any], keys: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(tiny_config(*keys), **changes)


def test_kinds_that_cannot_be_matched_name_the_nearest_sizes() -> None:
    kinds, config = ("self", "none"), tiny_config("model.attention.head_dim=6")
    with pytest.raises(UserError, match="can't be brought within 1e-06") as refused:
        match(config, kinds, 1e-6)
    message = str(refused.value)
    of_self, of_none = match(config, kinds, 0.05)
    assert "{:,} + {:,} are wanted".format(*of_self.of_networks) in message
    assert "{:,} + {:,} ".format(*of_none.of_networks) + f"({KNOB}={of_none.mlp_width})" in message
    enough = float(message.partition("--tolerance ")[2].partition(",")[0])
    assert match(config, kinds, enough) == (of_self, of_none)
    beside = with_values(config, {KIND: "none", KNOB: of_none.mlp_width - 1})
    assert beside.model.attention.mlp_width == of_none.mlp_width - 1


def uneven_config(*of_discriminator: int) -> Config:
    """Networks of other channels, with attention as wide as these."""
    return load_config(
        "demo",
        overrides=("model.generator.channels=[16,32,64]", "model.attention.head_dim=0",
                   f"model.discriminator.channels={list(of_discriminator)}"),
    )  # fmt: skip


def test_each_network_is_matched_not_their_sum() -> None:
    """Matched in the sum, the discriminators of these would be 1.65% apart."""
    matched = match(uneven_config(16, 32, 96), ("self", "none"), 0.016)
    for networks in zip(*(kind.of_networks for kind in matched), strict=True):
        assert max(networks) / min(networks) <= 1.016
    assert differences(matched) == pytest.approx((0.0153, 0.0152), abs=1e-4)


def test_networks_that_one_width_does_not_match_are_refused() -> None:
    """The sum of these can be matched to the last digits, with generators 22% apart."""
    config, kinds = uneven_config(16, 64, 256), ("self", "none")
    with pytest.raises(UserError, match=f"with one {KNOB} for both networks") as refused:
        match(config, kinds, 0.05)
    message = str(refused.value)
    enough = float(message.partition("--tolerance ")[2].partition(",")[0])
    matched = match(config, kinds, enough)
    assert 0.05 < max(differences(matched)) <= enough < 0.15
    assert "{:,} + {:,} ".format(*matched[1].of_networks) in message


def test_other_settings_for_the_same_folder_are_refused_by_name(tmp_path: Path) -> None:
    folder = str(tmp_path / "compare")
    plan = plan_of(tiny_config())
    assert load_plan(folder) is None
    save_plan(folder, plan)
    saved = load_plan(folder)
    assert saved == plan
    refuse_changes(folder, saved, plan)
    refuse_changes(folder, saved, plan_of(tiny_config("cluster.cpus_per_worker=2")))
    for other, named in (
        (plan_of(tiny_config("optim.generator.lr=0.5")), "optim.generator.lr .was 0.0002, now 0.5"),
        (plan_of(tiny_config("log.proxy_clips=99")), "log.proxy_clips"),
        (plan_of(tiny_config(), num_seeds=3), "--seeds .was 2 from 0, now 3 from 0"),
        (plan_of(tiny_config(), steps=10), "--steps"),
        (plan_of(tiny_config(), kinds=("none", "self")), "--kinds .was self,none"),
    ):
        with pytest.raises(UserError, match=named):
            refuse_changes(folder, saved, other)


def course(quality: tuple[float, ...], step_s: float = 1.0, **more: Any) -> Course:
    steps = tuple(10 * (n + 1) for n in range(len(quality)))
    return Course(
        kind="self", seed=0, steps=steps, compute_s=tuple(step_s * step for step in steps),
        quality=quality, untrained=1000.0, **more,
    )  # fmt: skip


def test_equal_time_is_read_on_lines_between_evaluations() -> None:
    slow, fast = course((100.0, 50.0, 20.0), step_s=3.0), course((90.0, 60.0, 30.0))
    assert common_time([slow, fast]) == 30
    assert slow.at_time(30) == 100 and fast.at_time(30) == 30
    assert slow.at_time(45) == pytest.approx(75) and slow.at_time(15) == pytest.approx(550)
    assert slow.at_end() == 20


def test_a_run_that_diverged_counts_as_bad_and_does_not_set_the_time() -> None:
    whole, lost = course((100.0, 50.0)), course((5.0,), diverged_at=13)
    assert common_time([whole, lost]) == 20
    assert lost.at_end() == lost.at_time(20) == lost.at_time(5) == 1000
    assert common_time([lost]) == 0


def test_intervals_are_paired_t_intervals_at_the_level_of_all_comparisons() -> None:
    values = {"a": [10.0, 12.0, 9.0], "b": [16.0, 19.0, 15.0], "c": [11.0, 12.5, 10.2]}
    pairs = {(pair.first, pair.second): pair for pair in compare_pairs(values)}
    assert set(pairs) == {("a", "b"), ("a", "c"), ("b", "c")}
    logs = np.log(values["a"]) - np.log(values["b"])
    low, high = stats.t.interval(1 - 0.05 / 6, 2, logs.mean(), stats.sem(logs))
    pair = pairs["a", "b"]
    assert pair.ratio == pytest.approx(math.exp(logs.mean()))
    assert (pair.low, pair.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert pair.better == "a" and pairs["b", "c"].better == "c" and pairs["a", "c"].better is None
    assert "**a is better than b**; **c is better than b**" in verdict(list(pairs.values()), 3)
    assert "No conclusion** on the other pair of 3" in verdict(list(pairs.values()), 3)


def test_one_seed_supports_nothing() -> None:
    (pair,) = compare_pairs({"a": [1.0], "b": [1000.0]})
    assert pair.better is None and pair.high == math.inf
    assert "no conclusion" in verdict([pair], 1) and "one seed" in verdict([pair], 1)
    assert smallest_visible_ratio([pair]) == math.inf


def test_runs_that_diverged_win_nothing_against_each_other() -> None:
    """Kinds share start weights, so the ratios of untrained generators are steady."""
    untrained = {"a": (1000.0, 1500.0, 2000.0), "b": (1100.0, 1651.0, 2203.0)}
    lost = [course((), diverged_at=3)] * 3
    assert compare_pairs(untrained)[0].better == "a"
    (pair,) = compare_pairs({kind: of_whole_runs(lost, v) for kind, v in untrained.items()})
    assert pair.better is None and pair.ratio is None and pair.num_seeds == 0
    assert "too few runs trained to the end" in verdict([pair], 3)


def test_only_seeds_at_which_both_trained_to_the_end_are_compared() -> None:
    (whole,) = compare_pairs({"a": [10.0, 12.0, 9.0], "b": [15.0, 17.0, 14.0]})
    for ends in ((None, None), (None, 1e-9), (None, 1e9)):
        (pair,) = compare_pairs({"a": [10.0, 12.0, 9.0, ends[1]], "b": [15.0, 17.0, 14.0, ends[0]]})
        assert (pair.ratio, pair.low, pair.high) == (whole.ratio, whole.low, whole.high)
        assert pair.num_seeds == 3 and pair.better == "a"


def test_a_kind_that_diverged_where_the_other_trained_is_never_better() -> None:
    lucky, steady = [10.0, 12.0, 9.0, None], [15.0, 17.0, 14.0, 16.0]
    for names, unsteady in ((("a", "b"), "a"), (("b", "a"), "b")):
        values = dict(zip(names, (lucky, steady), strict=True))
        for order in (names, names[::-1]):
            (pair,) = compare_pairs({name: values[name] for name in order})
            assert pair.better is None and pair.unsteady == (unsteady,)
            assert "diverged where the other did not" in verdict([pair], 4)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.0, 3.7)])
def test_ratios_without_spread_support_nothing(scale: tuple[float, float]) -> None:
    """Trainings differ; the same ratio to the last digit comes from runs that are no two draws."""
    (pair,) = compare_pairs({"a": [10 * s for s in scale], "b": [10.01 * s for s in scale]})
    assert pair.better is None and pair.high == math.inf
    assert pair.ratio == pytest.approx(10 / 10.01)


def test_pairing_by_seed_removes_what_seeds_have_in_common() -> None:
    hard = np.array([1.0, 3.0, 10.0, 2.0])
    better = compare_pairs({"a": 10 * hard, "b": 13 * hard * [1.0, 1.02, 0.98, 1.0]})[0]
    assert better.better == "a"
    unpaired = compare_pairs({"a": 10 * hard, "b": 13 * hard[[1, 2, 3, 0]]})[0]
    assert unpaired.better is None


@pytest.mark.parametrize("diverging", [0.0, 0.5])
@pytest.mark.parametrize(("kinds", "seeds", "trials"), [(2, 2, 2000), (4, 3, 400), (6, 5, 400)])
def test_luck_alone_is_seldom_called_better(
    kinds: int, seeds: int, trials: int, diverging: float
) -> None:
    """Kinds that do not differ: at most 1 in 20 comparisons may claim anything at all, be it after
    equal steps or after equal time (readings of the same runs, so they go together)."""
    rng = np.random.default_rng(0)

    def draw_run() -> tuple[float | None, float | None]:
        at_steps = rng.normal(4, 0.1)
        at_time = 4 + 0.5 * (at_steps - 4) + rng.normal(0, 0.1)
        diverged = rng.random() < diverging
        return (None, None) if diverged else (math.exp(at_steps), math.exp(at_time))

    def claims_anything() -> bool:
        runs = {str(kind): [draw_run() for _ in range(seeds)] for kind in range(kinds)}
        return any(
            pair.better
            for reading in (0, 1)
            for pair in compare_pairs({kind: [r[reading] for r in of] for kind, of in runs.items()})
        )

    claims = sum(claims_anything() for _ in range(trials))
    assert claims / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_true_differences_are_found() -> None:
    rng = np.random.default_rng(1)
    found = sum(
        compare_pairs(
            {"a": 50 * np.exp(rng.normal(0, 0.1, 4)), "b": 100 * np.exp(rng.normal(0, 0.1, 4))}
        )[0].better
        == "a"
        for _ in range(100)
    )
    assert found >= 95


def test_spread_is_the_sample_deviation() -> None:
    assert spread([1.0, 3.0]).deviation == pytest.approx(math.sqrt(2))
    assert spread([4.0]).deviation == 0 and spread([4.0]).mean == 4
