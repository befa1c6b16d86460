"""The report's plots, as PNG files. Figures are objects: nothing global, no window, no display."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from distgan import storage
from distgan.compare.results import KindResult, Results
from distgan.compare.statistics import Course

# Okabe and Ito's colours, which colour-blind people can tell apart; a kind has always the same.
COLOURS = {
    "none": "#7f7f7f", "additive": "#E69F00", "dense": "#D55E00", "self": "#0072B2",
    "factorised": "#009E73", "window": "#CC79A7", "sparse": "#56B4E9",
}  # fmt: skip
MARKERS = {
    "none": "X", "additive": "v", "dense": "s", "self": "o", "factorised": "D", "window": "P",
    "sparse": "^",
}  # fmt: skip
DISTANCE = "proxy Fréchet distance (lower is better)"


def write_plots(results: Results, folder: str) -> dict[str, str]:
    """Writes all plots; name -> what it shows."""
    plots: dict[str, tuple[Figure, str]] = {
        "quality_over_steps.png": (
            _courses(results, "training steps", lambda course: (0, *course.steps),
                     results.plan.steps),
            "Distance over training steps; line: mean of the seeds, thin lines: single seeds",
        ),
        "quality_over_time.png": (
            _courses(results, "computing time [s]", lambda course: (0, *course.compute_s),
                     results.common_time_s),
            "Distance over computing time; dotted: where the equal-time reading is taken",
        ),
        "quality_against_cost.png": (
            _against_cost(results),
            "Distance after all steps against what a step costs; bars: standard deviation",
        ),
        "cost_over_tokens.png": (
            _over_tokens(results),
            "What the layers of one attention place cost on one clip, forward and backward",
        ),
    }  # fmt: skip
    for name, (figure, _) in plots.items():
        _write(figure, storage.join(folder, name))
    return {name: text for name, (_, text) in plots.items()}


def _courses(
    results: Results, x_label: str, x_of: Callable[[Course], Sequence[float]], read_at: float
) -> Figure:
    figure, (axes,) = _figure(1)
    for kind in results.kinds:
        _draw_courses(axes, kind, x_of)
    axes.axhline(results.floor, color="black", linewidth=0.8, linestyle="--")
    axes.annotate("real clips", (0.01, results.floor), xycoords=("axes fraction", "data"),
                  xytext=(2, 3), textcoords="offset points", fontsize=8)  # fmt: skip
    axes.axvline(read_at, color="black", linewidth=0.8, linestyle=":")
    _log_axis(axes, "y")
    axes.set_xlim(left=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(DISTANCE)
    _legend(figure, axes)
    return figure


def _draw_courses(axes: Axes, kind: KindResult, x_of: Callable[[Course], Sequence[float]]) -> None:
    colour = COLOURS[kind.name]
    whole = [course for course in kind.courses if course.diverged_at is None]
    for course in kind.courses:
        values = (course.untrained, *course.quality)
        axes.plot(x_of(course), values, color=colour, linewidth=0.7, alpha=0.35)
        if course.diverged_at is not None:
            axes.plot(x_of(course)[-1], values[-1], "x", color=colour, markersize=10)
    if whole:
        mean_x = np.mean([x_of(course) for course in whole], axis=0)
        mean = np.mean([(course.untrained, *course.quality) for course in whole], axis=0)
        axes.plot(mean_x, mean, color=colour, marker=MARKERS[kind.name], markersize=4,
                  linewidth=1.8, label=kind.name)  # fmt: skip
    else:
        axes.plot([], [], color=colour, marker="x", label=f"{kind.name} (diverged)")


def _against_cost(results: Results) -> Figure:
    figure, panels = _figure(3)
    costs: list[tuple[str, Callable[[KindResult], float | None]]] = [
        ("computing time of a step [s]", lambda kind: kind.step_s.mean if kind.step_s else None),
        ("memory of a step [GiB]", lambda kind: kind.step_memory_gib),
        ("GFLOPs a clip, forward", lambda kind: kind.forward_flops / 1e9),
    ]
    for axes, (label, cost) in zip(panels, costs, strict=True):
        known = [(kind, x) for kind in results.kinds if (x := cost(kind)) is not None]
        for kind, x in known:
            axes.errorbar(x, kind.at_steps.mean, yerr=kind.at_steps.deviation, capsize=3,
                          color=COLOURS[kind.name], marker=MARKERS[kind.name], markersize=7,
                          linestyle="", label=kind.name)  # fmt: skip
        axes.set_xlim(0, 1.15 * max((x for _, x in known), default=1.0))
        axes.set_xlabel(label)
    panels[0].set_ylim(bottom=0)  # shared: nothing looks larger than it is
    panels[0].set_ylabel(DISTANCE + "\nafter all steps")
    _legend(figure, panels[-1])  # FLOPs are known of all kinds
    return figure


def _over_tokens(results: Results) -> Figure:
    figure, panels = _figure(2)
    clock = "CPU time" if "cpu" in results.devices else "time"
    labels = {"time_s": f"{clock} [s]", "memory_mib": "memory [MiB]"}
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for kind in results.kinds:
            points = [(p["tokens"], p[key]) for p in kind.tokens if p[key] > 0]
            if points:
                tokens, values = zip(*points, strict=True)
                axes.plot(tokens, values, color=COLOURS[kind.name], marker=MARKERS[kind.name],
                          markersize=5, linewidth=1.5, label=kind.name)  # fmt: skip
        axes.axvline(results.num_tokens, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _log_axis(axes, "y")
        axes.set_xlabel("tokens (dotted: in this comparison)")
        axes.set_ylabel(label)
    _legend(figure, panels[0])
    return figure


def _figure(num_panels: int) -> tuple[Figure, list[Axes]]:
    width = {1: 7.5, 2: 10.0, 3: 12.0}[num_panels]
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, num_panels, squeeze=False, sharey=num_panels == 3)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, which="major", color="#e0e0e0", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, panels


def _log_axis(axes: Axes, name: str) -> None:
    """A logarithmic axis with plain numbers, at 1, 2, 5 times powers of ten."""
    axis = axes.yaxis if name == "y" else axes.xaxis
    (axes.set_yscale if name == "y" else axes.set_xscale)("log")
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)


def _write(figure: Figure, path: str) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    storage.write_bytes(path, buffer.getvalue())
