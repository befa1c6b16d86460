"""The plots of sweeps, looked at as figures: what their axes say and where their marks are."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.sweep_folders import BASE, COST, LR, METRIC, add_trial, record, spec_of, start_sweep
from tune import plots
from tune.axes import texts
from tune.results import write_results

GAMMA, HEADS, D_LR = "loss.gamma", "model.attention.heads", "optim.discriminator.lr"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Those that are drawn, by the title's first word."""
    made: dict[str, Figure] = {}

    def keep(figure: Figure) -> bytes:
        FigureCanvasAgg(figure).draw()
        titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
        made["".join(titles).partition(" ")[0]] = figure
        return b""

    monkeypatch.setattr(plots, "_png", keep)
    return made


def sweep_of_rates(folder: str, base: float) -> None:
    """Values as close as real ones, a choice of rates, and two trials that diverged at once."""
    space = {
        LR: {"choice": [1e-5, 1e-4, 1e-3, 1e-2]},
        D_LR: {"loguniform": [1e-5, 1e-3]},
        GAMMA: {"loguniform": [1.0, 9.0]},
        HEADS: {"randint": [1, 4]},
    }
    start_sweep(folder, spec_of(space=space))
    add_trial(folder, record(BASE, base))
    for index in range(8):
        rate = [1e-5, 1e-4, 1e-3, 1e-2][index % 4]
        overrides = {LR: rate, D_LR: 1.1e-5 * 1.8**index, GAMMA: 1.1 + index, HEADS: index % 3 + 1}
        bad = {"status": "diverged", "step": 3 + index, "reason": f"step {3 + index}: nan"}
        fields: dict[str, Any] = bad if rate == 1e-2 else {}
        value = None if fields else 3357 + index / 20
        add_trial(folder, record(f"{index:04d}", value, overrides=overrides, **fields))


def crosses(axes: Any) -> list[float]:
    """Where along x the crosses at the upper edge are."""
    found = [line for line in axes.lines if line.get_marker() == "X"]
    return sorted(
        float(line.get_xdata()[0])
        for line in found
        if line.get_transform() == axes.get_xaxis_transform() and line.get_ydata()[0] == 0.97
    )


def test_labels_of_slices_have_room_and_rates_are_logarithmic(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    sweep_of_rates(str(tmp_path), base=3400.0)
    write_results(str(tmp_path))
    figure = figures["A"]
    assert "black = base" in figure.get_suptitle()
    by_key = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_visible()}
    scales = {key: axes.get_xscale() for key, axes in by_key.items()}
    assert scales == {LR: "log", D_LR: "log", GAMMA: "log", HEADS: "linear"}
    assert crosses(by_key[LR]) == [1e-2, 1e-2]
    for axes in by_key.values():
        low, high = axes.get_xlim()
        labels = [
            label.get_window_extent()
            for label in (*axes.get_xticklabels(), *axes.get_xticklabels(minor=True))
            if label.get_text() and low <= label.get_position()[0] <= high
        ]
        assert len(labels) >= 2
        labels.sort(key=lambda box: box.x0)
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(labels))


def test_a_base_that_wins_is_said_to_be_the_red_dot(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    sweep_of_rates(str(tmp_path), base=3300.0)
    write_results(str(tmp_path))
    title = figures["A"].get_suptitle()
    assert "red = base, the winner" in title and "black" not in title


def test_close_values_are_told_apart(tmp_path: Path, figures: dict[str, Figure]) -> None:
    sweep_of_rates(str(tmp_path), base=3357.5)
    write_results(str(tmp_path))
    legend = figures["Objective"].axes[0].get_legend()
    assert legend is not None
    values = [text.get_text().partition(": ")[2] for text in legend.get_texts()]
    assert len(values) == len(set(values)) == 7
    (axes,) = figures["Configurations:"].axes
    ticks = [text.get_text() for text in axes.texts]
    assert ticks[-3:] == ["3357", "3357.2", "3357.5"] and not any("e+" in text for text in ticks)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([3357.12, 3357.24], ["3357.1", "3357.2"]),
        ([3357.12, 21.0], ["3360", "21"]),
        ([1e-5, 0.00025], ["1e-05", "0.00025"]),
        ([2.0, 2.0], ["2", "2"]),
    ],
)
def test_numbers_have_the_digits_that_tell_them_apart(
    values: list[float], shown: list[str]
) -> None:
    assert texts(values) == shown


def test_a_trial_that_diverged_before_its_first_value_is_a_cross_at_the_edge(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    sweep_of_rates(str(tmp_path), base=3400.0)
    write_results(str(tmp_path))
    (axes,) = figures["Objective"].axes
    assert crosses(axes) == [6.0, 10.0]
    assert "at the edge" in axes.get_title()


def test_steps_of_short_sweeps_are_whole(tmp_path: Path, figures: dict[str, Figure]) -> None:
    start_sweep(str(tmp_path), spec_of())
    add_trial(str(tmp_path), record(BASE, 5.0, step=4))
    write_results(str(tmp_path))
    (axes,) = figures["Objective"].axes
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize(("mode", "way"), [("min", "steps-post"), ("max", "steps-pre")])
def test_the_front_has_steps(
    mode: str, way: str, tmp_path: Path, figures: dict[str, Figure]
) -> None:
    """Between two configurations nothing but the worse value of each is known to be in reach."""
    metrics = [{"name": METRIC}, {"name": COST, "mode": mode}]
    start_sweep(str(tmp_path), spec_of(metrics=metrics, algorithm="tpe"))
    sign = 1 if mode == "min" else -1
    for index, (quality, cost) in enumerate([(10.0, 9.0), (50.0, 1.0), (20.0, 3.0), (30.0, 4.0)]):
        values = {METRIC: quality, COST: 10 + sign * cost}
        overrides = {LR: 10.0 ** -(index + 2)}
        add_trial(str(tmp_path), record(f"g{index}", None, values=values, overrides=overrides))
    write_results(str(tmp_path))
    (axes,) = figures["Pareto"].axes
    (line,) = axes.lines
    assert line.get_drawstyle() == way
    front = sorted([(10 + sign * 1.0, 50.0), (10 + sign * 3.0, 20.0), (10 + sign * 9.0, 10.0)])
    assert line.get_xydata().tolist() == [list(point) for point in front]
