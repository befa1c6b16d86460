"""Results of sweeps, made from folders alone: files that programs and people take further."""

import csv
import io
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from distgan import storage
from distgan.config_loading import dump_yaml, flatten, load_config
from distgan.errors import UserError
from distgan.run_folder import saved_config
from tests.object_servers import BUCKET, options_for, rclone_server, with_options
from tests.sweep_folders import (
    BASE,
    COST,
    HEADS,
    KIND,
    LR,
    METRIC,
    add_trial,
    make_sweep,
    record,
    spec_of,
    start_sweep,
)  # fmt: skip
from tests.test_hparams import shown
from tests.tiny import launch
from tune.overview import best_config, load_sweep, overrides_line
from tune.records import read_sweep, write_record
from tune.results import write_results


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_data: str) -> Path:
    """A sweep of 12 configurations with 2 seeds each, some of which went wrong, with results."""
    folder = tmp_path_factory.mktemp("sweep")
    make_sweep(str(folder), trials=12, repeats=2, data=tiny_data)
    failed = record("g012", None, status="failed", step=0, reason="OSError: no\n space | left")
    write_record(str(folder), failed)
    pruned = record("g013", None, status="pruned", step=0, reason="heads do not divide channels")
    write_record(str(folder), pruned)
    stopped = record("g014", 200.0, status="stopped", step=4, reason="asha",
                     overrides={LR: 1e-4, KIND: "self", HEADS: 2})  # fmt: skip
    add_trial(str(folder), stopped)
    write_results(str(folder))
    return folder


def test_all_files_are_there(sweep: Path) -> None:
    names = {path.relative_to(sweep).as_posix() for path in sweep.rglob("*") if path.is_file()}
    assert {"best.yaml", "best_overrides.txt", "report.md", "trials.csv", "trials.md",
            "plots/objective.png", "plots/parallel.png", "plots/slices.png",
            "plots/importance.png"} <= names  # fmt: skip
    assert "plots/pareto.png" not in names


def test_the_overrides_paste_into_the_configuration_of_the_winner(sweep: Path) -> None:
    line = (sweep / "best_overrides.txt").read_text()
    pasted = load_config(None, sweep / "config.yaml", shlex.split(line))
    best = load_config(None, sweep / "best.yaml")
    assert best.run.dir == str(sweep / "best")
    differing = {k for k, v in flatten(pasted).items() if flatten(best)[k] != v}
    assert differing == {"run.dir"}
    winner = load_sweep(str(sweep)).winner
    assert winner is not None and winner.group != BASE
    assert best.optim.generator.lr == winner.overrides[LR]


@pytest.mark.parametrize(
    "value",
    ["self", "none", "null", "yes", "1e-5", "a b", "it's", 3, 1e-05, 0.5, True, [4, 8],
     [0.1, 0.9], ["a", "b"], [[1, 2], [3]]],
)  # fmt: skip
def test_every_value_survives_a_shell_and_yaml(value: object) -> None:
    [word] = shlex.split(overrides_line({"some.key": value}))  # type: ignore[dict-item]
    key, _, text = word.partition("=")
    read = yaml.safe_load(text)
    assert key == "some.key"
    # YAML takes 1e-05 for a text; the configuration's float keys take that for the number.
    assert (float(read) if isinstance(value, float) else read) == value


def test_the_table_holds_every_trial_and_setting(sweep: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((sweep / "trials.csv").read_text())))
    _, records = read_sweep(str(sweep))
    assert {row["trial"] for row in rows} == {trial.trial_id for trial in records}
    values = [float(r[METRIC]) for r in rows if r["status"] == "finished"]
    means = [np.mean(values[i : i + 2]) for i in range(0, len(values), 2)]
    assert rows[0]["rank"] == "1" and means == sorted(means)
    base = next(row for row in rows if row["group"] == BASE)
    assert float(base[LR]) == 2e-4 and base[KIND] == "self" and base[HEADS] == "2"
    lines = (sweep / "trials.md").read_text().splitlines()
    assert len(lines) == len(records) + 2
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_the_report_says_what_became_of_the_trials_and_how_sure_it_is(sweep: Path) -> None:
    text = (sweep / "report.md").read_text()
    assert "1 failed: OSError: no space | left (g012-s0)" in text
    assert "1 pruned: heads do not divide channels" in text
    assert "diverged: a gradient is not finite (" in text
    assert "The winner beats the base configuration: " in text
    assert "scatters with a standard deviation of" in text
    assert f"| {LR} | 0." in text and "chance rarely (1 in 20) gives" in text
    assert "stopped early stand behind" in text
    for name in ("objective", "slices", "parallel", "importance"):
        assert f"(plots/{name}.png)" in text


def test_pictures_show_something(sweep: Path) -> None:
    for path in (sweep / "plots").glob("*.png"):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape[0] >= 150 and pixels.shape[1] >= 600, path
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, path


def test_tensorboard_shows_all_trials(sweep: Path) -> None:
    experiment, groups = shown(sweep)
    assert {info.name for info in experiment.hparam_infos} == {LR, KIND, HEADS}
    assert [info.name.tag for info in experiment.metric_infos] == [METRIC]
    rows = {group.name: group for group in groups}
    _, records = read_sweep(str(sweep))
    assert rows.keys() == {trial.group for trial in records if trial.status != "pruned"}
    values = [t.values[METRIC] for t in records if t.group == "g000"]
    assert rows["g000"].metric_values[0].value == pytest.approx(np.mean(values), rel=1e-5)
    assert rows[BASE].hparams[LR].number_value == 2e-4


def test_results_come_out_the_same_again(sweep: Path) -> None:
    before = {p: p.read_bytes() for p in sweep.rglob("*") if p.is_file()}
    write_results(str(sweep))
    assert {p: p.read_bytes() for p in sweep.rglob("*") if p.is_file()} == before


def test_best_yaml_trains(sweep: Path) -> None:
    done = launch("train", "--config", str(sweep / "best.yaml"), "train.max_steps=3")
    assert done.returncode == 0, done.stderr
    best = saved_config(str(sweep / "best"))
    assert (
        best is not None
        and best.optim.generator.lr == best_config(load_sweep(str(sweep))).optim.generator.lr
    )


def test_a_sweep_without_repeats_says_that_luck_can_t_be_told(tmp_path: Path) -> None:
    make_sweep(str(tmp_path), trials=3)
    summary = write_results(str(tmp_path))
    assert "luck can't be told" in summary and "standard deviation" not in summary
    assert "Too little to tell" in (tmp_path / "report.md").read_text()


def test_a_base_that_nothing_beats_is_said_to_win(tmp_path: Path) -> None:
    start_sweep(str(tmp_path), spec_of())
    add_trial(str(tmp_path), record(BASE, 10.0))
    add_trial(str(tmp_path), record("g0", 20.0, overrides={LR: 1e-3}))
    assert "Nothing beat the base configuration." in write_results(str(tmp_path))
    assert (tmp_path / "best_overrides.txt").read_text() == "\n"
    best, base = load_config(None, tmp_path / "best.yaml"), saved_config(str(tmp_path))
    assert base is not None
    assert dump_yaml(best).replace("/best", "") == dump_yaml(base)


def test_a_sweep_without_the_base_says_so(tmp_path: Path) -> None:
    start_sweep(str(tmp_path), spec_of())
    add_trial(str(tmp_path), record("g0", 20.0, overrides={LR: 1e-3}))
    assert "was not among the trials" in write_results(str(tmp_path))


def test_an_unfinished_sweep_has_results_so_far(tmp_path: Path) -> None:
    start_sweep(str(tmp_path), spec_of())
    assert "none yet" in write_results(str(tmp_path))
    assert not (tmp_path / "best.yaml").exists()
    running = record("g0", 30.0, status="running", step=8, overrides={LR: 1e-3}, reason="")
    add_trial(str(tmp_path), running)
    waiting = record("g1", None, status="running", step=0, overrides={LR: 1e-2}, reason="")
    write_record(str(tmp_path), waiting)
    summary = write_results(str(tmp_path))
    assert "Trials still run, or were cut short" in summary and "at step 8" in summary
    assert (tmp_path / "best.yaml").exists()
    # Event files of trials that run must not be followed by others.
    assert not list((tmp_path / "trials").rglob("*hparams"))


def test_several_metrics_have_a_front(tmp_path: Path) -> None:
    metrics = [{"name": METRIC}, {"name": COST}]
    start_sweep(str(tmp_path), spec_of(metrics=metrics, algorithm="tpe"))
    for index, (quality, cost) in enumerate([(10.0, 9.0), (50.0, 1.0), (20.0, 3.0), (30.0, 4.0)]):
        values = {METRIC: quality, COST: cost}
        overrides = {LR: 10.0 ** -(index + 2), KIND: "self", HEADS: index + 1}
        add_trial(str(tmp_path), record(f"g{index}", None, values=values, overrides=overrides))
    write_results(str(tmp_path))
    text = (tmp_path / "report.md").read_text()
    front = text[text.index("## Pareto front") : text.index("## What mattered")]
    assert all(f"| g{i} |" in front for i in (0, 1, 2)) and "| g3 |" not in front
    assert (tmp_path / "plots" / "pareto.png").exists()


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sweep"):
        write_results(str(tmp_path))
    start_sweep(str(tmp_path), spec_of())
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml, the base configuration, is missing"):
        write_results(str(tmp_path))


@pytest.fixture
def bucket_url(tmp_path: Path) -> Iterator[str]:
    with rclone_server(tmp_path / "s3") as port, with_options(options_for(port)):
        yield f"s3://{BUCKET}/sweeps/one"


def test_results_on_object_storage_equal_those_on_disk(bucket_url: str, tmp_path: Path) -> None:
    local = tmp_path / "sweep"
    for folder in (bucket_url, str(local)):
        make_sweep(folder, trials=4)
        write_results(folder)
    theirs = tmp_path / "s3" / BUCKET / "sweeps" / "one"
    names = ["best_overrides.txt", "trials.csv", "trials.md", "plots/objective.png"]
    for name in names:
        assert (theirs / name).read_bytes() == (local / name).read_bytes(), name
    report = (theirs / "report.md").read_text().replace(bucket_url, str(local))
    assert report == (local / "report.md").read_text()
    _, groups = shown(theirs)
    assert len(groups) == 5
    assert storage.exists(storage.join(bucket_url, "best.yaml"))
