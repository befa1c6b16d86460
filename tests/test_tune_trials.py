"""Trials and the ledger together, with real training, in this process: Ray's part is played here.

The same with Ray's processes, which are killed there, is in test_tune_sweeps.py.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from distgan.checkpoint import committed_steps
from distgan.config_loading import load_config, with_values
from distgan.local import train_locally
from distgan.metrics.writer import read_metrics
from distgan.run_folder import saved_config
from tests.tiny import TINY
from tune import ledger as ledger_module
from tune import trial as trial_module
from tune.early_stopping import stopping_rule
from tune.ledger import Ledger
from tune.plan import Plan
from tune.population import read_generations, write_generations
from tune.records import MetricSpec, TrialRecord, read_sweep
from tune.settings import make_spec, save_settings
from tune.space import Space
from tune.trial import Board, Trial

METRIC = MetricSpec().name


class _Handle:
    """Of an actor: what a method returns comes at once."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.actor, name)
        return type("Method", (), {"remote": staticmethod(method)})


class _Ray:
    @staticmethod
    def get(value: Any, timeout: float | None = None) -> Any:
        return value


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trial_module, "ray", _Ray)
    monkeypatch.setattr(ledger_module, "ray", _Ray)
    monkeypatch.setattr(trial_module, "_POLL_S", 0.01)
    yield
    for sweep in Sweep.made:
        sweep.end()
    Sweep.made.clear()
    for thread in threading.enumerate():
        if thread.name == "watch":  # it would ask the real Ray, and end this process
            thread.join(10)
            assert not thread.is_alive()


class Sweep:
    """One start of a sweep, one trial at a time, all in the same process."""

    made: ClassVar[list["Sweep"]] = []

    def __init__(
        self, data: str, folder: Path, space: dict[str, object], *more: str, **given: Any
    ) -> None:
        measured = (
            "log.proxy_interval_steps=4",
            "log.proxy_clips=16",
            "checkpoint.interval_steps=4",
        )
        keys = [*TINY, *measured, f"data.shards={data}", f"run.dir={folder}", *more]
        self.base = load_config(overrides=keys)
        self.folder = str(folder)
        spec = make_spec(self.base, space, given)
        save_settings(self.base, spec)
        records = read_sweep(self.folder)[1]
        plan = Plan(
            spec, Space(spec.space, self.base), records, read_generations(self.folder),
            store=lambda generations: write_generations(self.folder, generations),
        )  # fmt: skip
        self.board = Board()
        self.told: list[str] = []
        self.ledger = Ledger(
            self.folder, spec, plan, stopping_rule(spec, 4), _Handle(self.board), 1,
            self.told.append,
        )  # fmt: skip
        self.trial: Trial = object.__new__(Trial)
        self.fresh = True
        self.made.append(self)

    def end(self) -> None:
        if not self.fresh:
            self.trial.cleanup()

    def run(self, interrupt: tuple[str, int] | None = None) -> dict[str, TrialRecord]:
        """To its end, or until it is interrupted at a trial's first evaluation from a step on."""
        while (job := self.ledger.next_job()) is not None:
            trial_id = job["trial_id"]
            if self.fresh:
                spec, base = self.ledger.spec.model_dump(), self.base.model_dump(mode="json")
                board = _Handle(self.board)
                self.trial.setup(job, folder=self.folder, base=base, spec=spec, board=board)
                self.fresh = False
            else:
                assert self.trial.reset_config(job)
            while "done" not in (result := self.trial.step()):
                self.ledger.note_evaluation(trial_id, result)
                if interrupt and interrupt[0] == trial_id and result["step"] >= interrupt[1]:
                    self.ledger.closed = True
                    self.board.interrupt()
            self.ledger.note_end(trial_id, result)
        return {record.trial_id: record for record in read_sweep(self.folder)[1]}


SPACE: dict[str, object] = {"optim.generator.lr": {"loguniform": [1e-5, 1e-3]}}


def plain_values(sweep: Sweep, trial: str, folder: Path) -> dict[str, float]:
    config = saved_config(f"{sweep.folder}/trials/{trial}")
    assert config is not None
    train_locally(with_values(config, {"run.dir": str(folder)}), show_progress=False)
    return {METRIC: read_metrics(str(folder / "metrics.jsonl"))[-1][METRIC]}


def test_an_interrupted_sweep_goes_on_where_it_was(tiny_data: str, tmp_path: Path) -> None:
    """A trial that diverges ends as one, without more starts, and the sweep goes on."""
    space: dict[str, object] = {"optim.discriminator.lr": {"grid": [1e-3, 1e12]}}
    given: Any = {"algorithm": "grid", "keep": 1}
    keys = ("optim.discriminator.kind=sgd",)
    sweep = Sweep(tiny_data, tmp_path / "run", space, *keys, **given)
    half = sweep.run(interrupt=("0000-seed0", 4))
    assert {name: r.status for name, r in half.items()} == {
        "base-seed0": "finished", "0000-seed0": "running",
    }  # fmt: skip
    assert committed_steps(f"{sweep.folder}/trials/0000-seed0")[-1] in (4, 5)
    stamp = (tmp_path / "run/trials/base-seed0/metrics.jsonl").stat().st_mtime_ns

    ended = Sweep(tiny_data, tmp_path / "run", space, *keys, **given).run()
    assert {name: r.status for name, r in ended.items()} == {
        "base-seed0": "finished", "0000-seed0": "finished", "0001-seed0": "diverged",
    }  # fmt: skip
    diverged = ended["0001-seed0"]
    assert "stop.nonfinite_steps" in diverged.reason
    assert diverged.step > 0 and diverged.reason.startswith(f"step {diverged.step}: ")
    assert (tmp_path / "run/trials/base-seed0/metrics.jsonl").stat().st_mtime_ns == stamp
    assert ended["0000-seed0"].values == plain_values(sweep, "0000-seed0", tmp_path / "plain")
    kept = [name for name in ended if (tmp_path / "run/trials" / name / "checkpoints").exists()]
    best = min(("base-seed0", "0000-seed0"), key=lambda name: ended[name].values[METRIC])
    assert kept == [best]


def test_a_trial_is_stopped_with_a_checkpoint_of_that_step(tiny_data: str, tmp_path: Path) -> None:
    # The base barely moves. Where more is better, a trial that learns is worse from the start.
    space: dict[str, object] = {"optim.generator.lr": {"choice": [1e-2]}}
    given: Any = {"algorithm": "asha", "num_trials": 1, "metrics": [f"{METRIC}:max"]}
    sweep = Sweep(tiny_data, tmp_path / "run", space, "optim.generator.lr=1e-9", **given)
    ended = sweep.run()
    stopped = ended["0000-seed0"]
    assert (stopped.status, stopped.step) == ("stopped", 4)
    assert stopped.reason == "asha: others do better at step 4"
    assert committed_steps(f"{sweep.folder}/trials/0000-seed0") == [4]


def test_the_base_configuration_always_comes_to_its_end(
    tiny_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could say whether anything beat it; the rule learns from it all the same."""
    sweep = Sweep(tiny_data, tmp_path / "run", SPACE, num_trials=1, algorithm="asha")
    asked: list[str] = []

    def stops(trial_id: str, step: int, value: float) -> bool:
        asked.append(trial_id)
        return True

    monkeypatch.setattr(sweep.ledger.rule, "stops", stops)
    ended = sweep.run()
    assert {name: r.status for name, r in ended.items()} == {
        "base-seed0": "finished", "0000-seed0": "stopped",
    }  # fmt: skip
    assert set(asked) == set(ended)


def test_members_of_a_population_wait_copy_and_go_on(tiny_data: str, tmp_path: Path) -> None:
    given: Any = {"algorithm": "pbt", "num_trials": 4, "perturbation_steps": 4, "keep": 9}
    whole = Sweep(tiny_data, tmp_path / "whole", SPACE, **given)
    ended = whole.run()
    assert {record.status for record in ended.values()} == {"finished"}
    generations = read_generations(whole.folder)
    assert [generation.step for generation in generations] == [4, 8]
    ((name, change),) = generations[-1].changes.items()
    assert (ended[name].parent, ended[name].overrides) == (change.parent, change.overrides)
    saved = saved_config(f"{whole.folder}/trials/{name}")
    assert saved is not None
    assert saved.optim.generator.lr == change.overrides["optim.generator.lr"]

    first = Sweep(tiny_data, tmp_path / "cut", SPACE, **given)
    first.run(interrupt=("0002-seed0", 8))
    again = Sweep(tiny_data, tmp_path / "cut", SPACE, **given).run()
    assert {n: (r.values, r.overrides, r.parent) for n, r in again.items()} == {
        n: (r.values, r.overrides, r.parent) for n, r in ended.items()
    }


def test_a_metric_that_nobody_reports_ends_the_sweep(tiny_data: str, tmp_path: Path) -> None:
    sweep = Sweep(tiny_data, tmp_path / "run", SPACE, metrics=["loss/all"], num_trials=3)
    sweep.run()
    assert "--metric loss/all: no trial reports it; logged are: " in str(sweep.ledger.problem)
    assert sweep.ledger.is_finished()


def test_a_fault_of_a_process_is_told_and_met_with_another_start(
    tiny_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no memory left")

    sweep = Sweep(tiny_data, tmp_path / "run", SPACE, num_trials=1)
    with monkeypatch.context() as patch:
        patch.setattr("distgan.local.train_locally", fail)
        with pytest.raises(RuntimeError):
            sweep.run()
    sweep.ledger.note_recovery("base-seed0", 1)
    assert sweep.told[-1].startswith("base-seed0: RuntimeError: no memory left (fault 1, allowed")
    sweep.board.note_fault("base-seed0", "RuntimeError: no memory left")
    sweep.ledger.note_failure("base-seed0", 3)
    ended = sweep.run()
    assert ended["base-seed0"].status == "failed"
    assert ended["base-seed0"].reason.startswith("RuntimeError: no memory left (fault 3")
    assert ended["0000-seed0"].status == "finished"
