"""A sweep's settings, what its folder takes when it goes on, and what it keeps."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import launch
from distgan.config import Config
from distgan.config_loading import flatten, load_config
from distgan.errors import UserError
from tests.tiny import REPOSITORY, TINY, one_thread
from tune.keeping import losers, remove_large
from tune.progress import table
from tune.records import MetricSpec, SweepSpec, TrialRecord, read_spec, read_sweep, write_record
from tune.settings import make_spec, save_settings, start_or_resume

METRIC = MetricSpec().name
SPACE: dict[str, object] = {"optim.generator.lr": {"loguniform": ["1e-5", 1e-3]}}


def config(run: Path, *more: str) -> Config:
    keys = [*TINY, "log.proxy_interval_steps=4", f"run.dir={run}", *more]
    return load_config(overrides=keys)


def test_what_is_given_is_resolved(tmp_path: Path) -> None:
    base = config(tmp_path, "seed=3")
    spec = make_spec(base, SPACE, {"algorithm": None, "metrics": ["loss/generator", "a:max"]})
    assert (spec.num_trials, spec.seed, spec.max_steps) == (16, 3, 12)
    assert spec.metrics == (MetricSpec(name="loss/generator"), MetricSpec(name="a", mode="max"))
    assert spec.space == {"optim.generator.lr": {"loguniform": [1e-5, 1e-3]}}
    grid: dict[str, object] = {"loss.gamma": {"grid": [1, 2, 10]}}  # the base is 10
    for algorithm in ("grid", "grid+asha", "grid+median"):
        assert make_spec(base, grid, {"algorithm": algorithm}).num_trials == 3
    # Members are compared where they were measured.
    pbt = make_spec(base, SPACE, {"algorithm": "pbt", "perturbation_steps": 5})
    assert pbt.perturbation_steps == 8


def test_no_more_trials_are_planned_than_there_are_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = config(tmp_path, "model.attention.kind=self")
    kinds: dict[str, object] = {"model.attention.kind": {"choice": ["none", "self"]},
                                "model.attention.density": {"uniform": [0.1, 0.9]}}  # fmt: skip
    for given in ({"num_trials": 9}, {}, {"algorithm": "tpe", "num_trials": 9}):
        assert make_spec(base, kinds, given).num_trials == 1
        assert "--num-trials is 1, not" in capsys.readouterr().out
    kinds["model.attention.kind"] = {"choice": ["none", "sparse"]}  # which reads the density
    assert make_spec(base, kinds, {"num_trials": 9}).num_trials == 9
    assert make_spec(base, SPACE, {"algorithm": "pbt"}).num_trials == 16
    with pytest.raises(UserError, match="holds the base configuration alone"):
        make_spec(base, {"model.attention.window": {"choice": [[0, 3, 3], [3, 3, 3]]}}, {})


@pytest.mark.parametrize(
    ("more", "given", "words"),
    [
        ((), {"num_trials": 0}, "--num-trials 0: Input should be greater than or equal to 1"),
        ((), {"gpus_per_trial": 2.0}, "--gpus-per-trial 2.0"),
        ((), {"metrics": ["a", "a"]}, "comes twice"),
        (("log.proxy_interval_steps=0",), {}, "set an interval"),
        (
            ("log.proxy_interval_steps=0",),
            {"algorithm": "asha", "metrics": ["quality/mine"]},
            "--metric quality/mine is measured every log.proxy_interval_steps=0 steps",
        ),
        (
            ("log.proxy_interval_steps=0",),
            {"algorithm": "pbt", "num_trials": 4, "metrics": ["quality/mine"]},
            "--metric quality/mine is measured every log.proxy_interval_steps=0 steps",
        ),
        (("log.proxy_interval_steps=13",), {}, "never within train.max_steps=12"),
    ],
)
def test_bad_settings_are_named(
    more: tuple[str, ...], given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        make_spec(config(tmp_path, *more), SPACE, given)
    assert words in str(error.value)


def test_a_sweep_goes_on_with_more_trials_but_not_as_another_one(tmp_path: Path) -> None:
    base = config(tmp_path / "run")
    spec = make_spec(base, SPACE, {})
    start_or_resume(base, spec)  # a new folder
    save_settings(base, spec)
    assert read_spec(base.run.dir) == spec
    start_or_resume(base, make_spec(base, SPACE, {"num_trials": 40, "keep": 9}))
    for other, keys, words in (
        (base, {"algorithm": "tpe"}, "algorithm (was random, now tpe)"),
        (config(tmp_path / "run", "seed=1"), {}, "seed"),
        (config(tmp_path / "run", "loss.gamma=3"), {}, "loss.gamma (was 10.0, now 3.0)"),
        (config(tmp_path / "run", "train.max_steps=20"), {}, "max_steps (was 12, now 20)"),
    ):
        with pytest.raises(UserError) as error:
            start_or_resume(other, make_spec(other, SPACE, keys))
        assert words in str(error.value) and "was made by another sweep" in str(error.value)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    base = config(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no sweep"):
        start_or_resume(base, make_spec(base, SPACE, {}))


def record(group: str, value: float | None, status: str = "finished", seed: int = 0) -> TrialRecord:
    fresh = TrialRecord(
        trial_id=f"{group}-seed{seed}", overrides={}, seed=seed, group=group, status="finished",
        reason="", step=12, values={} if value is None else {METRIC: value}, seconds=1.0,
    )  # fmt: skip
    return replace(fresh, status=status)  # type: ignore[arg-type]


RECORDS = [
    record("0000", 3.0), record("0001", 1.0), record("0002", 2.0), record("0003", 0.5, "stopped"),
    record("0004", None, "diverged"), record("0005", 9.0, "running"), record("0006", 0.1, "failed"),
    record("0007", 0.9), record("0007", 5.0, seed=1),
    record("0008", 0.2), record("0008", None, "running", seed=1),
]  # fmt: skip


def test_the_best_configurations_and_what_still_runs_are_kept(tmp_path: Path) -> None:
    spec = SweepSpec(space={"loss.gamma": {"choice": [1, 2]}}, keep=2, max_steps=12)
    base = flatten(load_config())
    lost = {each.trial_id for each in losers(spec, RECORDS, base)}
    assert lost == {
        "0000-seed0", "0003-seed0", "0004-seed0", "0006-seed0", "0007-seed0", "0007-seed1",
    }  # fmt: skip
    for each in RECORDS:
        write_record(str(tmp_path), each)
        for name in ("checkpoints", "generator", "tensorboard"):
            (tmp_path / "trials" / each.trial_id / name).mkdir()
    remove_large(str(tmp_path), losers(spec, RECORDS, base))
    kept = {path.parent.name for path in tmp_path.glob("trials/*/checkpoints")}
    assert kept == {each.trial_id for each in RECORDS} - lost
    assert len(list(tmp_path.glob("trials/*/tensorboard"))) == len(RECORDS)


def test_with_several_metrics_the_whole_front_is_kept() -> None:
    metrics = (MetricSpec(name=METRIC), MetricSpec(name="cost"))
    spec = SweepSpec(space={"loss.gamma": {"choice": [1, 2]}}, keep=1, metrics=metrics)
    points = {"0000": (1.0, 9.0), "0001": (2.0, 5.0), "0002": (3.0, 6.0), "0003": (4.0, 1.0)}
    records = [
        replace(record(group, None), values={METRIC: value, "cost": cost})
        for group, (value, cost) in points.items()
    ]
    lost = [each.group for each in losers(spec, records, flatten(load_config()))]
    assert lost == ["0002"]


def test_the_table_shows_what_runs_then_the_best(tmp_path: Path) -> None:
    spec = SweepSpec(space={"loss.gamma": {"choice": [1, 2]}})
    lines = table(spec, RECORDS, 12).splitlines()
    assert lines[0].startswith("11 of 12 trials: 1 diverged, 1 failed, 6 finished, 2 running")
    assert [line.split()[0] for line in lines[2:5]] == ["0005-seed0", "0008-seed1", "0008-seed0"]


def test_records_are_read_back_as_written(tmp_path: Path) -> None:
    base = config(tmp_path / "run")
    save_settings(base, make_spec(base, SPACE, {}))
    odd = replace(record("0000", float("inf")), overrides={"a": [1, "x"], "b": None}, parent="p")
    write_record(base.run.dir, odd)
    assert read_sweep(base.run.dir)[1] == [odd]
    file = tmp_path / "run/trials/0000-seed0/trial.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(UserError, match="a rerun repeats that trial"):
        read_sweep(base.run.dir)


def test_a_folder_that_can_t_be_made_is_named(
    tiny_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(json.dumps(SPACE))
    keys = [*TINY, "log.proxy_interval_steps=4", f"data.shards={tiny_data}", "run.dir=/proc/none"]
    assert launch.main(["tune", "--space", str(space), *keys]) == 2
    told = capsys.readouterr().err
    assert told.startswith("launch.py tune: /proc/none") and len(told.splitlines()) == 1


def test_who_reads_the_output_may_stop_reading(tmp_path: Path) -> None:
    """As `launch.py tune --status RUN | head -1` does."""
    base = config(tmp_path / "run")
    save_settings(base, make_spec(base, SPACE, {}))
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, str(REPOSITORY / "launch.py"), "tune", "--status", base.run.dir]
    done = subprocess.run(
        command, env=one_thread(), stdout=writes, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writes)
    assert (done.stderr, done.returncode) == ("", 128 + signal.SIGPIPE)


def test_overrides_may_stand_between_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = launch.build_parser()
    parsed = parser.parse_args(["tune", "a=1", "--space", "x", "b=2", "--keep", "4", "c=3"])
    assert (parsed.overrides, parsed.space, parsed.keep) == (["a=1", "b=2", "c=3"], "x", 4)
    with pytest.raises(SystemExit):
        parser.parse_args(["tune", "a=1", "--space", "x", "b=2", "--keeep", "4"])
    assert "unrecognized arguments: b=2 --keeep 4" in capsys.readouterr().err


def test_the_help_tells_how_many_trials_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launch.main(["tune", "--help"])
    assert "(default: 16, or all of a grid;" in " ".join(capsys.readouterr().out.split())
