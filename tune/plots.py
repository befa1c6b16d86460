"""The pictures of a sweep: objective over steps, hyperparameters, their importance, Pareto front.

Each function returns a PNG. Figures are made without pyplot, so there is no global state. Worse
candidates are paler, the winner is red and the base configuration is black in all of them.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from tune.importance import Importance
from tune.ranking import Candidate, winner
from tune.records import BASE, MetricSpec, SweepSpec, TrialRecord

Curve = Sequence[tuple[int, float]]
_WINNER, _BASE, _BAD = "crimson", "black", "darkorange"
_WIDE_RANGE = 20.0  # largest over smallest value from which an axis is logarithmic
_MOST_NAMED = 12  # candidates in a legend


class _Style:
    """How each candidate is drawn, by its place."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        best = winner(candidates)
        self.best = best.group if best else ""
        self._place = {candidate.group: i for i, candidate in enumerate(candidates)}

    def color(self, group: str) -> Any:
        if group in (self.best, BASE):
            return _WINNER if group == self.best else _BASE
        share = self._place[group] / max(1, len(self._place) - 1)
        return colormaps["viridis"](0.1 + 0.85 * share)

    def line(self, group: str) -> dict[str, Any]:
        """Matplotlib's arguments for a line; what matters lies on top."""
        special = group in (self.best, BASE)
        return {
            "color": self.color(group),
            "linewidth": 2.2 if special else 1.0,
            "alpha": 1.0 if special else max(0.35, 1 - len(self._place) / 100),
            "linestyle": "--" if group == BASE else "-",
            "zorder": 1000 if special else 500 - self._place[group],
        }


def draw_objective(
    spec: SweepSpec, candidates: Sequence[Candidate], curves: Mapping[str, Curve]
) -> bytes:
    """The first metric of every trial over its steps; a cross is where one diverged.

    Args:
        curves: trial -> its (step, value), oldest first.
    """
    metric, style = spec.metrics[0], _Style(candidates)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    named: dict[str, Line2D] = {}
    for candidate in candidates:
        for trial in candidate.trials:
            points = [point for point in curves.get(trial.trial_id, ()) if math.isfinite(point[1])]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            (line,) = axes.plot(steps, values, **style.line(candidate.group))
            mark = _end_mark(trial)
            axes.plot(steps[-1], values[-1], **mark, zorder=1001)
            named.setdefault(_name(candidate, metric), line)
    shown = list(named)[:_MOST_NAMED]
    shown += [name for name in named if name.startswith(f"{BASE}: ") and name not in shown]
    if shown:
        axes.legend(
            [named[name] for name in shown],
            shown,
            title="best first" if len(named) == len(shown) else f"best {_MOST_NAMED}",
            bbox_to_anchor=(1.01, 1),
            loc="upper left",
            fontsize=8,
        )
    _log_if_wide(axes, [value for curve in curves.values() for _, value in curve])
    axes.set_xlabel("step")
    axes.set_ylabel(f"{metric.name} ({'lower' if metric.mode == 'min' else 'higher'} is better)")
    axes.set_title("Objective over time: dot = finished, bar = stopped early, cross = diverged")
    axes.grid(alpha=0.3)
    return _png(figure)


def draw_parallel(spec: SweepSpec, candidates: Sequence[Candidate]) -> bytes:
    """Parallel coordinates: a line a candidate through its hyperparameters and its value."""
    metric, style = spec.metrics[0], _Style(candidates)
    shown = [c for c in candidates if c.state in ("finished", "unfinished")]
    keys = varied(shown)
    figure = Figure(figsize=(max(7, 1.9 * (len(keys) + 1)), 5.5), layout="constrained")
    axes = figure.add_subplot()
    columns = [_column(spec, key, [c.settings[key] for c in shown]) for key in keys]
    columns.append(_numbers([c.means[metric.name] for c in shown], log=False))
    places = [float(place) for place in range(len(columns))]
    generator = np.random.default_rng(0)  # of the display alone: equal categories side by side
    for row, candidate in enumerate(shown):
        heights = [
            heights[row] + (generator.uniform(-0.03, 0.03) if categories else 0.0)
            for heights, _, categories in columns
        ]
        axes.plot(places, heights, **style.line(candidate.group))
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for place, (_, ticks, _) in zip(places, columns, strict=True):
        axes.axvline(place, color="grey", linewidth=0.8, zorder=0)
        for height, text in ticks:
            axes.text(place + 0.03, height, text, fontsize=8, va="center", zorder=1002, bbox=box)
    axes.set_xticks(places, [*map(short, keys), short(metric.name)], fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(places) - 0.6)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.set_title("Configurations: red = winner, dashed = base, the paler the worse")
    return _png(figure)


def draw_slices(spec: SweepSpec, candidates: Sequence[Candidate]) -> bytes:
    """The first metric over each hyperparameter: a dot a trial."""
    metric, style = spec.metrics[0], _Style(candidates)
    keys = varied(candidates)
    columns = min(3, max(1, len(keys)))
    rows = max(1, math.ceil(len(keys) / columns))
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, key in zip(grid, keys, strict=False):
        _draw_slice(axes, spec, key, candidates, style)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    values = [v for c in candidates if c.state != "diverged" for v in c.values]
    if len(grid):
        _log_if_wide(grid[0], values)
    for row in range(rows):
        grid[row * columns].set_ylabel(short(metric.name))
    figure.suptitle("A dot a trial: red = winner, black = base, hollow = not finished; orange cross"
                    " at the edge = diverged", fontsize=10)  # fmt: skip
    return _png(figure)


def draw_importance(found: Sequence[Importance]) -> bytes:
    """The importance of each hyperparameter, with its interval and what chance alone reaches."""
    figure = Figure(figsize=(8, 1.4 + 0.45 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for place, each in enumerate(reversed(found)):
        axes.barh(place, each.share, color=_WINNER if each.stands_out else "silver", height=0.6)
        error = [[each.share - each.low], [each.high - each.share]]
        axes.errorbar(each.share, place, xerr=error, color="black", capsize=3, linewidth=1)
    axes.axvline(found[0].chance, color="black", linestyle=":", linewidth=1.5)
    axes.text(found[0].chance, len(found) - 0.45, " by chance", fontsize=8, va="bottom")
    axes.set_yticks(range(len(found)), [each.key for each in reversed(found)])
    axes.set_ylim(-0.5, len(found) - 0.1)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the trials' order that it explains alone, with 90 % interval")
    return _png(figure)


def draw_pareto(
    spec: SweepSpec, candidates: Sequence[Candidate], front: Sequence[Candidate]
) -> bytes:
    """The first metric against each other one, with the candidates that nothing beats."""
    first, *others = spec.metrics
    style = _Style(candidates)
    figure = Figure(figsize=(6.5 * len(others), 5), layout="constrained")
    for axes, other in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        for candidate in candidates:
            if candidate.state != "finished" or other.name not in candidate.means:
                continue
            point = candidate.means[other.name], candidate.means[first.name]
            axes.scatter(*point, color=style.color(candidate.group), s=30, zorder=3)
            if candidate in front:
                axes.annotate(candidate.group, point, xytext=(5, 5), textcoords="offset points",
                              fontsize=8)  # fmt: skip
        line = sorted((c.means[other.name], c.means[first.name]) for c in front)
        axes.plot(*zip(*line, strict=True), color=_WINNER, linewidth=1, alpha=0.6, zorder=2)
        axes.set_xlabel(f"{other.name} ({'lower' if other.mode == 'min' else 'higher'} is better)")
        axes.set_ylabel(f"{first.name} ({'lower' if first.mode == 'min' else 'higher'} is better)")
        axes.grid(alpha=0.3)
    figure.suptitle("Pareto front: named configurations are beaten by none in all metrics")
    return _png(figure)


def varied(candidates: Sequence[Candidate]) -> list[str]:
    """Hyperparameters with more than one value."""
    keys = candidates[0].settings if candidates else ()
    return [key for key in keys if len({str(c.settings[key]) for c in candidates}) > 1]


def short(key: str) -> str:
    """The last two parts of a dotted key or tag, on two lines."""
    return "\n".join(key.replace("/", ".").split(".")[-2:])


def _draw_slice(
    axes: Axes, spec: SweepSpec, key: str, candidates: Sequence[Candidate], style: _Style
) -> None:
    having = [candidate for candidate in candidates if candidate.state != "unranked"]
    categories = _categories([candidate.settings[key] for candidate in having])
    for candidate in having:
        value: Any = candidate.settings[key]
        place = categories.index(str(value)) if categories else value
        color = style.color(candidate.group)
        order = 10 if candidate.group in (style.best, BASE) else 3
        if candidate.state == "diverged":
            axes.plot(place, 0.97 if spec.metrics[0].mode == "min" else 0.03, "x", color=_BAD,
                      transform=axes.get_xaxis_transform())  # fmt: skip
            continue
        fill = color if candidate.state == "finished" else "none"
        for single in candidate.values:
            axes.plot(place, single, "o", color=color, markerfacecolor=fill, zorder=order)
    if categories:
        axes.set_xticks(range(len(categories)), categories, fontsize=8)
        axes.set_xlim(-0.5, len(categories) - 0.5)
    elif "loguniform" in spec.space.get(key, {}):
        axes.set_xscale("log")
    axes.set_xlabel(key, fontsize=9)
    axes.grid(alpha=0.3)


def _end_mark(trial: TrialRecord) -> dict[str, Any]:
    marks = {"finished": "o", "stopped": "|", "diverged": "X"}
    color = _BAD if trial.status == "diverged" else "dimgrey"
    size = {"finished": 3, "stopped": 7, "diverged": 8}.get(trial.status, 0)
    return {"marker": marks.get(trial.status, ""), "markersize": size, "color": color}


def _name(candidate: Candidate, metric: MetricSpec) -> str:
    value = candidate.means.get(metric.name)
    text = "no value" if value is None else f"{value:.4g}"
    return f"{candidate.group}: {'diverged' if candidate.state == 'diverged' else text}"


def _categories(values: Sequence[Any]) -> list[str]:
    """The distinct values as texts, if they are not all numbers."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return []
    return sorted({str(value) for value in values})


_Column = tuple[list[float], list[tuple[float, str]], bool]
"""A parallel axis: heights of the values (0 to 1), ticks, and whether these are categories."""


def _column(spec: SweepSpec, key: str, values: Sequence[Any]) -> _Column:
    categories = _categories(values)
    if not categories:
        return _numbers(values, log="loguniform" in spec.space.get(key, {}))
    heights = {text: i / max(1, len(categories) - 1) for i, text in enumerate(categories)}
    return [heights[str(v)] for v in values], [(h, text) for text, h in heights.items()], True


def _numbers(values: Sequence[float], *, log: bool) -> _Column:
    low, high = min(values), max(values)
    log = log and low > 0

    def height(value: float) -> float:
        if low == high:
            return 0.5
        if log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    middle = math.sqrt(low * high) if log else (low + high) / 2
    marked = (low, high) if isinstance(low, int) else (low, middle, high)
    ticks = [(height(value), f"{value:.3g}") for value in dict.fromkeys(marked)]
    return [height(value) for value in values], ticks, False


def _log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) / min(finite) > _WIDE_RANGE:
        axes.set_yscale("log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(LogFormatter(minor_thresholds=(2, 0.4)))  # 60, not 6 x 10^1


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
