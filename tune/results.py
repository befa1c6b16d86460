"""Makes a sweep's results from its folder alone, at any time: also of a sweep that still runs.

best.yaml            the winner as a whole configuration, for `launch.py train --config`
best_overrides.txt   the winner as overrides, on one line, to paste behind `launch.py train`
report.md            who won, how sure that is, what mattered, what became of the trials
trials.csv, .md      every trial
plots/*.png          see tune/plots.py
tensorboard/         the columns of TensorBoard's HParams; the rows are in the trials' folders
"""

import contextlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import JsonValue

from distgan import storage
from distgan.config import Config
from distgan.config_loading import dump_yaml, flatten, with_values
from distgan.errors import UserError
from distgan.metrics.writer import (
    METRICS_NAME,
    read_metrics,
    write_hparams,
    write_hparams_overview,
)
from distgan.run_folder import saved_config
from tune import plots, report, tables
from tune.importance import Importance, importances
from tune.ranking import Candidate, best_trial, pareto_front, rank, score, winner
from tune.records import SweepSpec, TrialRecord, read_sweep, trial_folder

BEST, BEST_OVERRIDES, RETRAINED = "best.yaml", "best_overrides.txt", "best"
PLOTS = "plots"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep as its folder holds it, with its candidates in order."""

    folder: str
    spec: SweepSpec
    base: Config
    records: tuple[TrialRecord, ...]
    candidates: tuple[Candidate, ...]

    @property
    def winner(self) -> Candidate | None:
        return winner(self.candidates)


def load_sweep(folder: str) -> Sweep:
    """Reads a sweep's folder.

    Raises:
        UserError: it holds no sweep, or a file of it is damaged.
    """
    spec, records = read_sweep(folder)
    base = saved_config(folder)
    if base is None:
        raise UserError(f"{folder}: config.yaml, the base configuration, is missing; put it back")
    candidates = rank(spec, records, flatten(base))
    return Sweep(
        folder=folder, spec=spec, base=base, records=tuple(records), candidates=tuple(candidates)
    )


def write_results(folder: str) -> str:
    """Writes all of the results anew and returns what they come to, in a few lines.

    Raises:
        UserError: there is no sweep in the folder, or a file of it is damaged.
    """
    sweep = load_sweep(folder)
    found = _importances(sweep)
    _write_winner(sweep)
    _write(sweep, tables.CSV, tables.as_csv(sweep.spec, sweep.candidates))
    _write(sweep, tables.MARKDOWN, tables.as_markdown(sweep.spec, sweep.candidates))
    pictures = _write_plots(sweep, found)
    best = sweep.winner
    line = overrides_line(best_overrides(sweep, best)) if best else ""
    _write(
        sweep, report.NAME, report.text(folder, sweep.spec, sweep.candidates, found, line, pictures)
    )
    _write_hparams(sweep)
    return report.summary(folder, sweep.spec, sweep.candidates, line)


def best_overrides(sweep: Sweep, best: Candidate) -> dict[str, JsonValue]:
    """What turns the base configuration into the winner's best trial, its seed among it."""
    overrides = dict(best.overrides)
    trial = best_trial(sweep.spec, best)
    return overrides if trial.seed == sweep.base.seed else {**overrides, "seed": trial.seed}


def best_config(sweep: Sweep) -> Config:
    """The winner as a whole configuration, with a run folder of its own in the sweep's.

    Raises:
        UserError: no trial has a value yet.
    """
    best = sweep.winner
    if best is None:
        metric = sweep.spec.metrics[0].name
        raise UserError(f"{sweep.folder}: no trial has a value of {metric} yet; wait for one")
    run_dir = storage.join(sweep.folder, RETRAINED)
    return with_values(sweep.base, {**best_overrides(sweep, best), "run.dir": run_dir})


def overrides_line(overrides: Mapping[str, JsonValue]) -> str:
    """`key=value ...` for a shell; the configuration reads the same values from it."""
    return " ".join(shlex.quote(f"{key}={_as_text(value)}") for key, value in overrides.items())


def read_curve(folder: str, trial: TrialRecord, metric: str) -> list[tuple[int, float]]:
    """A trial's (step, value) of one metric, oldest first; empty if it has logged none."""
    path = storage.join(trial_folder(folder, trial.trial_id), METRICS_NAME)
    with contextlib.suppress(FileNotFoundError):
        return [(int(line["step"]), line[metric]) for line in read_metrics(path) if metric in line]
    return []


def _as_text(value: Any) -> str:
    text = str(value)
    if isinstance(value, str):
        # Quotes only where YAML would see a number, a list, a yes ...
        return text if yaml.safe_load(text) == value else yaml.safe_dump(value).strip()
    flow = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return flow.removesuffix("...\n").strip().replace(", ", ",")


def _write(sweep: Sweep, name: str, text: str) -> None:
    storage.write_bytes(storage.join(sweep.folder, name), text.encode())


def _write_winner(sweep: Sweep) -> None:
    best = sweep.winner
    if best is not None:
        _write(sweep, BEST, dump_yaml(best_config(sweep)))
        _write(sweep, BEST_OVERRIDES, overrides_line(best_overrides(sweep, best)) + "\n")


def _importances(sweep: Sweep) -> list[Importance]:
    """Of candidates with comparable values: finished ones, and diverged ones as the worst."""
    metric = sweep.spec.metrics[0]
    told = [c for c in sweep.candidates if c.state in ("finished", "unfinished", "diverged")]
    # Those that were stopped early lie behind the finished ones, in the order of the ranking.
    places = [float("inf") if c.state == "diverged" else float(i) for i, c in enumerate(told)]
    columns = {key: [c.settings[key] for c in told] for key in plots.varied(told)}
    if all(candidate.state != "unfinished" for candidate in told):
        places = [float("inf") if c.state == "diverged" else score(metric, c.means) for c in told]
    return importances(columns, places)


def _write_plots(sweep: Sweep, found: list[Importance]) -> list[str]:
    """Draws what there is to draw; returns the files' names."""
    spec, candidates = sweep.spec, sweep.candidates
    drawn: dict[str, bytes] = {}
    curves = {t.trial_id: read_curve(sweep.folder, t, spec.metrics[0].name) for t in sweep.records}
    if any(curves.values()):
        drawn["objective.png"] = plots.draw_objective(spec, candidates, curves)
    told = [candidate for candidate in candidates if candidate.state != "unranked"]
    if sweep.winner is not None and plots.varied(told):
        drawn["slices.png"] = plots.draw_slices(spec, told)
        drawn["parallel.png"] = plots.draw_parallel(spec, told)
    if found:
        drawn["importance.png"] = plots.draw_importance(found)
    front = pareto_front(spec, candidates)
    if len(spec.metrics) > 1 and front:
        drawn["pareto.png"] = plots.draw_pareto(spec, candidates, front)
    names = [storage.join(PLOTS, name) for name in drawn]
    for name, picture in zip(names, drawn.values(), strict=True):
        storage.write_bytes(storage.join(sweep.folder, name), picture)
    return names


def _write_hparams(sweep: Sweep) -> None:
    """Ended trials appear in TensorBoard's HParams; those that run would be cut off there."""
    for candidate in sweep.candidates:
        for trial in candidate.trials:
            if trial.status in ("running", "pruned"):
                continue
            write_hparams(
                trial_folder(sweep.folder, trial.trial_id),
                candidate.settings,
                group=trial.group,
                step=trial.step,
                values=trial.values,
                succeeded=trial.status in ("finished", "stopped"),
            )
    if sweep.candidates:
        domains = {key: [c.settings[key] for c in sweep.candidates]
                   for key in sweep.candidates[0].settings}  # fmt: skip
        metrics = [metric.name for metric in sweep.spec.metrics]
        write_hparams_overview(sweep.folder, domains, metrics)
