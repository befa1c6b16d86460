"""How `launch.py tune` ends: with results, with bad trials, with a metric that nobody reports."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distgan import storage
from distgan.config_loading import load_config, with_values
from distgan.errors import UserError
from distgan.run_folder import StopSignals
from launch import main
from tests.sweep_folders import (
    BASE,
    LR,
    make_sweep,
    record,
    spec_of,
    start_sweep,
)
from tests.tiny import TINY
from tune.early_stopping import NoStopping
from tune.ledger import Ledger
from tune.plan import Plan
from tune.records import MetricSpec, TrialRecord, read_sweep, write_record
from tune.settings import save_settings, start_or_resume
from tune.space import Space
from tune.sweep import SweepOutcome, _Sweep


def run_instead(
    monkeypatch: pytest.MonkeyPatch, folder: Path, make: Callable[[], SweepOutcome]
) -> int:
    """`launch.py tune` in a folder, with a sweep that is made at once; its exit code."""
    monkeypatch.setattr("tune.sweep.run_sweep", lambda config, spec: make())
    space = folder / "space.yaml"
    space.write_text(f"{LR}: {{loguniform: [1.0e-5, 1.0e-2]}}")
    return main(["tune", "--space", str(space), f"run.dir={folder}"])


def test_a_sweep_ends_with_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sweep() -> SweepOutcome:
        make_sweep(str(tmp_path), trials=2)
        return SweepOutcome(read_sweep(str(tmp_path))[1], None, True)

    assert run_instead(monkeypatch, tmp_path, sweep) == 0
    assert "Winner: " in capsys.readouterr().out
    assert (tmp_path / "report.md").exists()


@pytest.mark.parametrize(("status", "code"), [("diverged", 3), ("failed", 1)])
def test_a_sweep_of_bad_trials_ends_with_its_results_too(
    status: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def sweep() -> SweepOutcome:
        start_sweep(str(tmp_path), spec_of(num_trials=1))
        for group, how in ((BASE, status), ("0000", "diverged")):
            bad = record(group, None, status=how, step=0, reason="a gradient is not finite")
            write_record(str(tmp_path), bad)
        return SweepOutcome(read_sweep(str(tmp_path))[1], None, True)

    assert run_instead(monkeypatch, tmp_path, sweep) == code
    assert "all 2 trials ended badly" in capsys.readouterr().err
    assert "a gradient is not finite" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "trials.csv").exists()
    for action in ("export", "retrain"):
        assert main(["tune", f"--{action}", str(tmp_path)]) == 2
        message = capsys.readouterr().err
        assert "the sweep is over" in message and "wait" not in message


def test_a_sweep_that_was_cut_short_is_not_judged_by_bad_trials(tmp_path: Path) -> None:
    SweepOutcome([record(BASE, None, status="diverged", step=0)], None, False).refuse_all_bad()


def end_unmeasured(folder: str, earlier: Sequence[TrialRecord] = ()) -> None:
    """A sweep of a metric that its first trial does not report, up to its end; without Ray."""
    config = with_values(load_config(overrides=TINY), {"run.dir": folder})
    space = Space({LR: {"loguniform": [1e-5, 1e-2]}}, config)
    metrics = [MetricSpec(name="nope/nope")]
    spec = spec_of(space={k: d.as_tree() for k, d in space.keys.items()}, metrics=metrics)
    save_settings(config, spec)
    for record_ in earlier:
        write_record(folder, record_)
    plan = Plan(spec, space, earlier)
    sweep: Any = object.__new__(_Sweep)
    sweep.folder, sweep.spec, sweep.error = folder, spec, None
    sweep.ledger = Ledger(folder, spec, plan, NoStopping(), None, 1, print)
    job = sweep.ledger.next_job()
    storage.write_bytes(storage.join(folder, "ray", "start-1", "state"), b"")
    end = {"state": "unmeasured", "reason": "--metric nope/nope: ...", "seconds": 1.0, "step": 0}
    sweep.ledger.note_end(job["trial_id"], end)
    with pytest.raises(UserError, match="--metric nope/nope"):
        sweep.run(StopSignals())


def test_a_metric_that_nobody_reports_leaves_the_folder_free(tmp_path: Path) -> None:
    end_unmeasured(str(tmp_path / "run"))
    assert not list((tmp_path / "run").iterdir())
    config = load_config(overrides=[*TINY, f"run.dir={tmp_path / 'run'}"])
    start_or_resume(config, spec_of())  # which refuses what holds anything else


def test_a_sweep_with_values_stays_when_one_trial_reports_none(tmp_path: Path) -> None:
    measured = record("0003", None, values={"nope/nope": 3.0})
    end_unmeasured(str(tmp_path), earlier=[measured])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"sweep.yaml", "config.yaml", "trials"}
