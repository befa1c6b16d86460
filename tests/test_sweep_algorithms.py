"""Sweeps' algorithms find known optima on published problems: 20 seeds each, in this process."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from scipy.stats import wilcoxon

from tests.simulated_sweep import (
    HARTMANN_KEYS,
    METRIC,
    MOST_STEPS,
    RATE,
    TOY_VALUES,
    Hartmann,
    NoisyQuadratic,
    Simulated,
    ToyMember,
    X,
    Y,
    best_fixed_rate,
    branin,
    branin_curve,
    curve_of,
    hartmann,
    simulate,
    spec_of,
    start_branin,
)
from tune.algorithms import StoppingRule, stopping_rule

SEEDS = range(20)
PLACES = [15 * place / 7 for place in range(8)]
GRID = {X: {"choice": PLACES}, Y: {"choice": PLACES}}
RATES = {RATE: {"loguniform": [1e-3, 1.0]}}


def on_the_grid(algorithm: str, seed: int, rule: StoppingRule | None = None) -> Simulated:
    """As `--algorithm grid+asha --grace-steps 3` runs it; `rule`: another one than it asks for."""
    spec = spec_of(algorithm, GRID, max_steps=MOST_STEPS, num_trials=64, seed=seed, grace_steps=3)
    return simulate(spec, start_branin(seed), rule=rule)


def upside_down(seed: int) -> StoppingRule:
    """It stops the better ones."""
    metrics = [{"name": METRIC, "mode": "max"}]
    spec = spec_of("asha", GRID, max_steps=MOST_STEPS, seed=seed, grace_steps=3, metrics=metrics)
    return stopping_rule(spec, 1)


@dataclass(frozen=True)
class Race:
    """A sweep with early stopping against the whole grid."""

    found: bool
    """Within 1 % of the grid's best, without the noise."""
    steps: float
    """Of those that the whole grid takes."""


def race(algorithm: str, seed: int, rule: StoppingRule | None = None) -> Race:
    done = on_the_grid(algorithm, seed, rule)
    grid = min(branin_curve(x, y, seed).exact(MOST_STEPS) for x in PLACES for y in PLACES)
    if not any(record.status == "finished" and record.group != "base"
               for record in done.records.values()):  # fmt: skip
        return Race(False, done.steps / (64 * MOST_STEPS))
    best = curve_of(done.best().overrides, seed).exact(MOST_STEPS)
    return Race(best <= 1.01 * grid, done.steps / (64 * MOST_STEPS))


def test_asha_finds_the_grid_s_best_in_two_fifths_of_its_steps() -> None:
    races = [race("grid+asha", seed) for seed in SEEDS]
    assert sum(each.found and each.steps <= 0.4 for each in races) >= 18, races


def test_what_is_not_asha_does_not() -> None:
    """The measure above can fail: trials that all train to their end take all steps, and a rule
    that stops the better ones finds nothing."""
    whole = race("grid", 0)
    assert whole.found and whole.steps == 1.0
    assert not any(race("grid+asha", seed, upside_down(seed)).found for seed in range(5))


def test_the_functions_have_their_published_optima() -> None:
    assert min(branin(math.pi, 2.275), branin(-math.pi, 12.275)) == pytest.approx(
        0.397887, abs=1e-5
    )
    place = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
    best = hartmann(dict(zip(HARTMANN_KEYS, place, strict=True)))
    assert best == pytest.approx(0.0, abs=1e-4)


def best_of_thirty(algorithm: str, seed: int) -> float:
    """The best of 30 trials, one at a time, on Hartmann's function."""
    space = {key: {"uniform": [0.0, 1.0]} for key in HARTMANN_KEYS}
    spec = spec_of(algorithm, space, max_steps=MOST_STEPS, num_trials=30, seed=seed)
    done = simulate(spec, lambda overrides, _: Hartmann(), at_a_time=1, every=MOST_STEPS)
    assert len(done.records) == 31
    return hartmann(done.best().overrides)


def doubt(first: Sequence[float], second: Sequence[float]) -> float:
    """That the first are no better (lower): Wilcoxon's one-sided signed-rank test over seeds."""
    return float(wilcoxon(first, second, alternative="less").pvalue)


def test_tpe_beats_random_search_at_the_same_budget() -> None:
    tpe = [best_of_thirty("tpe", seed) for seed in SEEDS]
    chance = [best_of_thirty("random", seed) for seed in SEEDS]
    assert doubt(tpe, chance) < 0.001
    assert statistics.median(tpe) < 0.6 * statistics.median(chance)
    # The measure can fail: random search does not beat random search.
    others = [best_of_thirty("random", seed + 100) for seed in SEEDS]
    assert doubt(others, chance) > 0.05


def test_pbt_beats_every_fixed_setting_where_the_optimum_moves() -> None:
    """On the noisy quadratic the best rate falls a hundredfold within the run. The fixed one is the
    best of a thousand, against a population of 8: it may win once in a while."""
    fixed = best_fixed_rate(1e-3, 1.0, 400)
    found = [pbt_on_the_quadratic(seed, perturbation_steps=20) for seed in SEEDS]
    assert sum(loss < fixed for loss in found) >= 18, (found, fixed)
    # Half-way, in orders of magnitude, to what the best of all schedules comes to.
    assert statistics.median(found) < math.sqrt(fixed / (1 / 100 + 400))


def pbt_on_the_quadratic(seed: int, perturbation_steps: int) -> float:
    spec = spec_of("pbt", RATES, max_steps=400, num_trials=8, seed=seed,
                   perturbation_steps=perturbation_steps)  # fmt: skip
    done = simulate(spec, lambda overrides, _: NoisyQuadratic(), every=20)
    return done.best().values[METRIC]


def test_a_population_that_copies_nothing_does_not() -> None:
    """The measure above can fail: members that never copy keep fixed rates."""
    fixed = best_fixed_rate(1e-3, 1.0, 400)
    spec = {"max_steps": 400, "num_trials": 8}
    for seed in range(5):
        done = simulate(spec_of("random", RATES, seed=seed, **spec),
                        lambda overrides, _: NoisyQuadratic(), every=20)  # fmt: skip
        assert done.best().values[METRIC] >= fixed * (1 - 1e-9)


def test_pbt_solves_its_paper_s_toy_problem() -> None:
    """Each fixed setting leaves one of the two parameters where it was: a loss of 0.81."""
    for value in TOY_VALUES:
        assert ToyMember().train({RATE: value}, 200) > 0.8
    space = {RATE: {"choice": list(TOY_VALUES)}}
    for seed in SEEDS:
        spec = spec_of("pbt", space, max_steps=200, num_trials=4, perturbation_steps=10, seed=seed)
        done = simulate(spec, lambda overrides, _: ToyMember(), every=10)
        assert done.best().values[METRIC] < 0.1


def test_median_stopping_finds_the_grid_s_best_with_less() -> None:
    races = [race("grid+median", seed) for seed in SEEDS]
    assert sum(each.found and each.steps <= 0.8 for each in races) >= 18, races


@pytest.mark.parametrize("algorithm", ["random", "tpe", "tpe+asha", "asha", "median", "pbt"])
def test_the_same_seed_makes_the_same_sweep_one_at_a_time(algorithm: str) -> None:
    space = RATES if algorithm == "pbt" else {X: {"uniform": [0, 15]}, Y: {"uniform": [0, 15]}}

    def sweep(seed: int) -> Simulated:
        spec = spec_of(algorithm, space, max_steps=20, num_trials=8, seed=seed)
        if algorithm == "pbt":
            return simulate(spec, lambda overrides, _: NoisyQuadratic(), at_a_time=1)
        return simulate(spec, start_branin(seed), at_a_time=1)

    assert sweep(3).records == sweep(3).records
    assert sweep(3).records != sweep(4).records
