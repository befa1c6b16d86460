"""Makes a sweep's results from its folder alone, at any time: also of a sweep that still runs.

best.yaml            the winner as a whole configuration, for `launch.py train --config`
best_overrides.txt   the winner as overrides, on one line, to paste behind `launch.py train`
report.md            who won, how sure that is, what mattered, what became of the trials
trials.csv, .md      every trial
plots/*.png          see tune/plots.py
tensorboard/         the columns of TensorBoard's HParams; the rows are in the trials' folders
"""

import contextlib

from distgan import storage
from distgan.config_loading import dump_yaml
from distgan.metrics.writer import (
    METRICS_NAME,
    read_metrics,
    write_hparams,
    write_hparams_overview,
)
from tune import plots, report, tables
from tune.importance import Importance, importances
from tune.overview import Sweep, best_config, best_overrides, load_sweep, overrides_line
from tune.ranking import pareto_front, score
from tune.records import TrialRecord, trial_folder

BEST, BEST_OVERRIDES = "best.yaml", "best_overrides.txt"
PLOTS = "plots"


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


def read_curve(folder: str, trial: TrialRecord, metric: str) -> list[tuple[int, float]]:
    """A trial's (step, value) of one metric, oldest first; empty if it has logged none."""
    path = storage.join(trial_folder(folder, trial.trial_id), METRICS_NAME)
    with contextlib.suppress(FileNotFoundError):
        return [(int(line["step"]), line[metric]) for line in read_metrics(path) if metric in line]
    return []


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
