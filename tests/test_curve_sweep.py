"""Algorithms on problems with a known optimum, through the whole of a sweep on a real Ray cluster.

What tpe and pbt decide follows from the seed and the trials' values alone, so with Ray they must
do what they do without: over 20 seeds that is in test_sweep_algorithms.py.
"""

from pathlib import Path

import pytest

from tests.cluster_runs import run_program
from tests.curve_sweep import PROBLEMS
from tests.simulated_sweep import METRIC, best_fixed_rate, curve_of, hartmann
from tune.overview import Sweep, load_sweep

pytestmark = [
    pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(600),
    pytest.mark.parametrize("seed", [0, 1]),
]  # fmt: skip


def sweep_on_ray(problem: str, seed: int, head: dict[str, str], data: str, run: Path) -> Sweep:
    command = ["-m", "tests.curve_sweep", str(run), data, str(seed), problem]
    run_program(command, head, timeout_s=500)
    return load_sweep(str(run))


def test_asha_finds_the_grid_s_best_in_two_fifths_of_its_steps(
    seed: int, head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    sweep = sweep_on_ray("branin", seed, head, tiny_data, tmp_path / "run")
    steps = sweep.spec.max_steps
    tried = [record for record in sweep.records if record.group != "base"]
    assert len(tried) == 25
    assert sum(record.step for record in tried) <= 0.4 * 25 * steps
    best = min(curve_of(record.overrides, seed).exact(steps) for record in tried)
    winner = sweep.winner
    assert winner is not None and winner.state == "finished"
    assert curve_of(winner.overrides, seed).exact(steps) <= 1.01 * best
    assert {record.status for record in tried} == {"finished", "stopped"}
    assert winner.means[METRIC] == pytest.approx(best, rel=0.1)  # the noise is 2 %


def test_tpe_one_at_a_time_beats_random_search_as_without_ray(
    seed: int, head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    sweep = sweep_on_ray("hartmann", seed, head, tiny_data, tmp_path / "run")
    problem = PROBLEMS["hartmann"]
    expected = problem.simulated(seed).records
    assert {r.trial_id: r.overrides for r in sweep.records} == {
        r.trial_id: r.overrides for r in expected.values()
    }
    assert sweep.winner is not None
    by_chance = hartmann(problem.simulated(seed, "random").best().overrides)
    assert hartmann(sweep.winner.overrides) < 0.6 * by_chance


def test_pbt_beats_every_fixed_rate_as_without_ray(
    seed: int, head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    """Its members' state goes from checkpoint to checkpoint, and their rates into configurations
    of running trials: a copy that forgot either would come to other values."""
    sweep = sweep_on_ray("quadratic", seed, head, tiny_data, tmp_path / "run")
    expected = PROBLEMS["quadratic"].simulated(seed).records
    assert {r.trial_id: r.values for r in sweep.records} == {
        r.trial_id: r.values for r in expected.values()
    }
    assert sweep.winner is not None
    assert sweep.winner.means[METRIC] < best_fixed_rate(1e-3, 1.0, 400)
