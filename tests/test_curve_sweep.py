"""asha on curves with a known optimum, through the whole of a sweep on a real Ray cluster."""

from pathlib import Path

import pytest

from tests.cluster_runs import run_program
from tests.curve_sweep import STEPS
from tests.simulated_sweep import METRIC, curve_of
from tune.overview import load_sweep


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1])
def test_asha_finds_the_best_of_what_it_tried_in_two_fifths_of_the_steps(
    seed: int, head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_program(["-m", "tests.curve_sweep", str(run), tiny_data, str(seed)], head)
    sweep = load_sweep(str(run))
    tried = [record for record in sweep.records if record.group != "base"]
    assert len(tried) == 27
    assert sum(record.step for record in tried) <= 0.4 * 27 * STEPS
    best = min(curve_of(record.overrides, 0).exact(STEPS) for record in tried)
    winner = sweep.winner
    assert winner is not None and winner.state == "finished"
    assert curve_of(winner.overrides, 0).exact(STEPS) <= 1.01 * best
    assert {record.status for record in tried} == {"finished", "stopped"}
    assert winner.means[METRIC] == pytest.approx(best, rel=0.1)  # the noise is 2 %
