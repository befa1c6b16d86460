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
from matplotlib.ticker import MaxNLocator

from tune.axes import categories_of, column, is_log, is_wide, numbers, set_log, texts
from tune.importance import Importance
from tune.ranking import Candidate, score, winner
from tune.records import BASE, MetricSpec, SweepSpec, TrialRecord

Curve = Sequence[tuple[int, float]]
_WINNER, _BASE, _BAD = "crimson", "black", "darkorange"
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
    """The first metric of every trial over its steps; a cross is where one diverged, at the edge if
    it had no value yet.

    Args:
        curves: trial -> its (step, value), oldest first.
    """
    metric, style = spec.metrics[0], _Style(candidates)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    named: dict[str, Line2D] = {}
    names = _names(candidates, metric)
    for candidate in candidates:
        for trial in candidate.trials:
            points = [point for point in curves.get(trial.trial_id, ()) if math.isfinite(point[1])]
            if not points:
                if trial.status == "diverged":
                    _cross_at_the_edge(axes, trial.step, metric)
                continue
            (line,) = axes.plot(*zip(*points, strict=True), **style.line(candidate.group))
            axes.plot(*points[-1], **_end_mark(trial), zorder=1001)
            named.setdefault(names[candidate.group], line)
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
    values = [v for curve in curves.values() for _, v in curve if math.isfinite(v)]
    if is_wide(values):
        set_log(axes.yaxis, values)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel(f"{metric.name} ({'lower' if metric.mode == 'min' else 'higher'} is better)")
    axes.set_title("Objective over time: dot = finished, bar = stopped early, cross = diverged\n"
                   "(at the edge: before it had a value)", fontsize=11)  # fmt: skip
    axes.grid(alpha=0.3)
    return _png(figure)


def draw_parallel(spec: SweepSpec, candidates: Sequence[Candidate]) -> bytes:
    """Parallel coordinates: a line a candidate through its hyperparameters and its value."""
    metric, style = spec.metrics[0], _Style(candidates)
    shown = [c for c in candidates if c.state in ("finished", "unfinished")]
    keys = varied(shown)
    figure = Figure(figsize=(max(7, 1.9 * (len(keys) + 1)), 5.5), layout="constrained")
    axes = figure.add_subplot()
    columns = [column(spec, key, [c.settings[key] for c in shown]) for key in keys]
    columns.append(numbers([c.means[metric.name] for c in shown], log=False, digits=4))
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
    values = [v for c in candidates if c.state != "diverged" for v in c.values if math.isfinite(v)]
    if is_wide(values):
        set_log(grid[0].yaxis, values)
    for row in range(rows):
        grid[row * columns].set_ylabel(short(metric.name))
    who = "red = base, the winner" if style.best == BASE else "red = winner, black = base"
    figure.suptitle(f"A dot a trial: {who}, hollow = not finished; orange cross at the edge = "
                    "diverged", fontsize=10)  # fmt: skip
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
        # Steps: between two configurations nothing better than these is known to be in reach.
        way: Any = "steps-post" if other.mode == "min" else "steps-pre"
        points = _outline(front, first, other)
        axes.plot(*zip(*points, strict=True), drawstyle=way, color=_WINNER, linewidth=1, alpha=0.6,
                  zorder=2)  # fmt: skip
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
    settings: list[Any] = [candidate.settings[key] for candidate in having]
    categories = categories_of(settings)
    for candidate in having:
        value: Any = candidate.settings[key]
        place = categories.index(str(value)) if categories else value
        color = style.color(candidate.group)
        order = 10 if candidate.group in (style.best, BASE) else 3
        if candidate.state == "diverged":
            _cross_at_the_edge(axes, place, spec.metrics[0])
            continue
        fill = color if candidate.state == "finished" else "none"
        for single in candidate.values:
            axes.plot(place, single, "o", color=color, markerfacecolor=fill, zorder=order)
    if categories:
        axes.set_xticks(range(len(categories)), categories)
        axes.set_xlim(-0.5, len(categories) - 0.5)
    elif is_log(spec, key, settings):
        set_log(axes.xaxis, settings)
    else:
        whole = all(isinstance(value, int) for value in settings)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(key, fontsize=9)
    axes.grid(alpha=0.3)


def _end_mark(trial: TrialRecord) -> dict[str, Any]:
    marks = {"finished": "o", "stopped": "|", "diverged": "X"}
    color = _BAD if trial.status == "diverged" else "dimgrey"
    size = {"finished": 3, "stopped": 7, "diverged": 8}.get(trial.status, 0)
    return {"marker": marks.get(trial.status, ""), "markersize": size, "color": color}


def _cross_at_the_edge(axes: Axes, place: float, metric: MetricSpec) -> None:
    """Of a trial that diverged without a value: on the bad side."""
    height = 0.97 if metric.mode == "min" else 0.03
    axes.plot(place, height, "X", color=_BAD, markersize=8, transform=axes.get_xaxis_transform())


def _outline(
    front: Sequence[Candidate], first: MetricSpec, other: MetricSpec
) -> list[tuple[float, float]]:
    """(other, first) of those that none beats in these two metrics, from left to right."""
    points = []
    least = math.inf
    for each in sorted(front, key=lambda c: (score(other, c.means), score(first, c.means))):
        if score(first, each.means) < least:
            least = score(first, each.means)
            points.append((each.means[other.name], each.means[first.name]))
    return sorted(points)


def _names(candidates: Sequence[Candidate], metric: MetricSpec) -> dict[str, str]:
    """Group -> what the legend calls it; values with the digits that tell them apart."""
    valued = [c for c in candidates if c.state != "diverged" and metric.name in c.means]
    shown = texts([c.means[metric.name] for c in valued], digits=4)
    facts = {c.group: text for c, text in zip(valued, shown, strict=True)}
    missing = {c.group: "diverged" if c.state == "diverged" else "no value" for c in candidates}
    return {group: f"{group}: {fact}" for group, fact in (missing | facts).items()}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
