"""Runs of a comparison that diverged: what they leave behind, and what is said of them."""

import json
import shutil
from pathlib import Path

import pytest

import launch as command_line
from distgan.compare.measures import MEASURED
from distgan.compare.plan import load_plan
from distgan.config_loading import with_values
from distgan.errors import DivergedError
from distgan.local import train_locally
from distgan.run_folder import diverged_step
from tests.compare_runs import KINDS, arguments, copy_of, results, rows

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

HOPELESS = ("optim.generator.lr=1e30", "optim.discriminator.lr=1e30")


def train_hopelessly(folder: Path, data: str, kind: str, seed: int) -> int:
    """Makes a comparison's run again, such that it diverges within a few steps; returns the step
    that its marker tells."""
    plan = load_plan(str(folder))
    assert plan is not None
    (matched,) = (k for k in plan.kinds if k.kind == kind)
    config = plan.run_config(str(folder), matched, seed)
    shutil.rmtree(config.run.dir)
    values = {"data.shards": data} | dict(key.split("=") for key in HOPELESS)
    with pytest.raises(DivergedError):
        train_locally(with_values(config, values), show_progress=False)
    return diverged_step(config.run.dir)


def test_a_kind_that_diverged_before_any_measurement_is_reported(
    comparison: Path, tiny_data: str, tmp_path: Path
) -> None:
    folder = copy_of(comparison, tmp_path)
    steps = {str(seed): train_hopelessly(folder, tiny_data, "none", seed) for seed in (0, 1)}
    assert 0 < min(steps.values()) <= max(steps.values()) < 4
    assert command_line.main(arguments(folder, tiny_data)) == 0
    of_self, of_none = results(folder)["kinds"]
    assert of_none["step_compute_s"] is None and of_none["diverged"] == steps
    assert of_self["step_compute_s"] > 0 and of_self["diverged_runs"] == 0
    (line,) = (x for x in (folder / "table.md").read_text().splitlines() if "| none |" in x)
    assert "(2 diverged)" in line and "| - |" in line
    assert {row["kind"] for row in rows(folder, "courses.csv")} == {"self"}
    assert rows(folder, "table.csv")[1]["step_compute_s"] == ""
    assert "none diverged** in 2 of 2 runs" in (folder / "report.md").read_text()


def test_a_comparison_of_which_all_runs_diverged_is_reported(
    tiny_data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "compare"
    assert command_line.main(arguments(folder, tiny_data, *HOPELESS)) == 0
    found = results(folder)
    assert [kind["step_compute_s"] for kind in found["kinds"]] == [None, None]
    for pair in (*found["pairs_at_steps"], *found["pairs_at_time"]):
        assert pair["better"] is pair["ratio"] is None and pair["seeds"] == 0
    report = (folder / "report.md").read_text()
    for kind in KINDS:
        assert f"**{kind} diverged** in 2 of 2 runs" in report
    assert "After equal computing time" not in report
    assert rows(folder, "courses.csv") == []


def test_a_run_that_diverged_is_shown_and_counts_as_bad(
    comparison: Path, tiny_data: str, tmp_path: Path
) -> None:
    folder = copy_of(comparison, tmp_path)
    run = folder / "runs" / "none-seed1"
    (run / MEASURED).unlink()
    shutil.rmtree(run / "generator")
    (run / "DIVERGED.json").write_text('{"step": 7, "reason": "the test says so"}')
    assert command_line.main(arguments(folder, tiny_data)) == 0
    untrained = json.loads((run / MEASURED).read_text())["proxy_frechet"]["untrained"]
    (row,) = [row for row in results(folder)["kinds"] if row["kind"] == "none"]
    other = json.loads((folder / "runs" / "none-seed0" / MEASURED).read_text())
    expected = (untrained + other["proxy_frechet"]["generated"]) / 2
    assert row["diverged_runs"] == 1 and row["diverged"] == {"1": 7}
    assert row["distance_at_equal_steps"] == pytest.approx(expected)
    assert (
        "**none diverged** in 1 of 2 runs (seed 1 at step 7)" in (folder / "report.md").read_text()
    )
