"""`launch.py compare` as users run it: report, resumption, recomputation, refusals, on Ray."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

import launch as command_line
from distgan.compare.measures import MEASURED
from distgan.compare.plan import PLAN
from distgan.compare.real_clips import REAL_CLIPS
from distgan.metrics.writer import read_metrics
from tests.cluster_runs import run_program
from tests.compare_runs import KINDS, RUNS, arguments, copy_of, files, results, rows
from tests.processes import running
from tests.tiny import REPOSITORY, launch, one_thread

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def learned(folder: Path) -> list[tuple[str, ...]]:
    """The courses without what a clock measured."""
    return [tuple(v for k, v in row.items() if k != "compute_s")
            for row in rows(folder, "courses.csv")]  # fmt: skip


def test_the_folder_holds_a_whole_report(comparison: Path) -> None:
    report = (comparison / "report.md").read_text()
    for part in ("What the data supports", "What it does not support", "no conclusion",
                 "may as well be luck", "within 0."):  # fmt: skip
        assert part in report or part.capitalize() in report, part
    page = (comparison / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 + 1 + len(KINDS)
    assert 'src="plots' not in page and 'href="sheets' not in page
    for name in ("quality_over_steps", "quality_over_time", "quality_against_cost",
                 "cost_over_tokens"):  # fmt: skip
        assert f"plots/{name}.png" in report
        assert Image.open(comparison / "plots" / f"{name}.png").size[0] > 500
    for name in ("all", *KINDS):
        assert Image.open(comparison / "sheets" / f"{name}.png").size[0] > 400
    table = (comparison / "table.md").read_text()
    header, *_ = table.splitlines()
    for column in ("distance after 8 steps", "parameters (G + D)", "FLOPs a clip", "time a step",
                   "peak memory of a step"):  # fmt: skip
        assert f"| {column} |" in header
    of_none = next(line for line in table.splitlines() if "| none |" in line).split(" | ")
    assert len(of_none) == len(header.split(" | ")) and "-" not in of_none and "±" in of_none[1]
    assert table in report + "\n" and all(f"| {kind} |" in table for kind in KINDS)
    assert {row["kind"] for row in rows(comparison, "table.csv")} == set(KINDS)
    tokens = [int(row["tokens"]) for row in rows(comparison, "tokens.csv") if row["kind"] == "self"]
    assert tokens == sorted(tokens) and len(tokens) >= 3 and tokens[-1] <= 4096


def test_runs_are_ordinary_and_measured_on_equal_terms(comparison: Path) -> None:
    measured = {}
    for run in RUNS:
        folder = comparison / "runs" / run
        assert (folder / "generator" / "generator.json").exists()
        assert (folder / "config.yaml").exists()
        measured[run] = json.loads((folder / MEASURED).read_text())
        lines = [line for line in read_metrics(str(folder / "metrics.jsonl"))
                 if "quality/proxy_frechet_ema" in line]  # fmt: skip
        assert [line["step"] for line in lines] == [4, 8]
        # Two ways to the same number: the run's own evaluation, and that of its export.
        again = measured[run]["proxy_frechet"]["generated"]
        assert lines[-1]["quality/proxy_frechet_ema"] == pytest.approx(again, rel=1e-6)
    assert len({m["proxy_frechet"]["real"] for m in measured.values()}) == 1, "the same real clips"
    kinds = {row["kind"]: row for row in results(comparison)["kinds"]}
    for kind in KINDS:
        ends = [measured[f"{kind}-seed{s}"]["proxy_frechet"]["generated"] for s in (0, 1)]
        assert kinds[kind]["distance_at_equal_steps"] == pytest.approx(sum(ends) / 2)
        assert kinds[kind]["step_memory_gib"] > 0 and kinds[kind]["step_compute_s"] > 0
    totals = [float(row["compute_s"]) for row in rows(comparison, "courses.csv")
              if row["step"] == "8"]  # fmt: skip
    assert results(comparison)["common_time_s"] == min(totals)


def test_report_only_computes_every_figure_again(comparison: Path, tmp_path: Path) -> None:
    folder = copy_of(comparison, tmp_path)
    before = files(folder)
    for path in folder.iterdir():
        if path.name not in ("runs", "costs", REAL_CLIPS, PLAN):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert command_line.main(["compare", "--output", str(folder), "--report-only"]) == 0
    assert files(folder) == before
    metrics = folder / "runs" / RUNS[0] / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[-1]["quality/proxy_frechet_ema"] *= 2
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command_line.main(["compare", "--output", str(folder), "--report-only"]) == 0
    changed = {name for name, data in files(folder).items() if before.get(name) != data}
    assert {"table.csv", "table.md", "courses.csv", "results.json", "report.md",
            "plots/quality_over_steps.png", "plots/quality_over_time.png",
            "plots/quality_against_cost.png", "sheets/self.png"} <= changed  # fmt: skip


def test_a_finished_comparison_trains_nothing_again(
    comparison: Path, tiny_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(comparison, tmp_path)
    before = files(folder / "runs")
    assert command_line.main(arguments(folder, tiny_data)) == 0
    assert files(folder / "runs") == before
    assert "training of" not in "".join(capsys.readouterr())


@pytest.mark.soak
def test_cut_short_it_goes_on_and_comes_to_the_same(tiny_data: str, tmp_path: Path) -> None:
    """Ctrl-C within the second run and SIGTERM later in it, each to the whole process group: the
    first run is kept as it is, the second goes on."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert launch(*arguments(once, tiny_data, steps=60), timeout_s=600).returncode == 0
    second = twice / "runs" / RUNS[1]
    command = [str(REPOSITORY / "launch.py"), *arguments(twice, tiny_data, steps=60)]
    first: dict[str, bytes] = {}
    for number, code, step in ((signal.SIGINT, 130, 10), (signal.SIGTERM, 143, 40)):

        def is_there(step: int = step) -> bool:
            metrics = second / "metrics.jsonl"
            return metrics.exists() and f'{{"step": {step},' in metrics.read_text()

        with running([sys.executable, *command], one_thread(), is_there) as process:
            os.killpg(process.pid, number)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        assert not (twice / "report.md").exists() and not (second / MEASURED).exists()
        assert list((second / "checkpoints").glob("*/COMMITTED"))
        first = first or files(twice / "runs" / RUNS[0])
    assert MEASURED in first
    done = launch(*arguments(twice, tiny_data, steps=60), timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr + done.stdout
    assert files(twice / "runs" / RUNS[0]) == first
    assert learned(twice) == learned(once)


@pytest.mark.soak
def test_side_by_side_on_ray_comes_to_the_same(
    comparison: Path, tiny_data: str, head: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "compare"
    run_program(["launch.py", *arguments(output, tiny_data, "--parallel=2")], head)
    assert learned(output) == learned(comparison)
    assert {row["kind"] for row in rows(output, "tokens.csv")} == set(KINDS)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--kinds=self",), "at least two"),
        (("--kinds=self,selfish",), "'selfish' is no kind of attention; known: none"),
        (("--kinds=self,none", "--tolerance=0.000001"), "the nearest that it can have are"),
        (("--kinds=self,sparse", "model.attention.density=0"), "sparse does not fit"),
        (("--steps=9",), "take 8 or 10 steps"),
        (("--parallel=0",), "--parallel 0"),
        (("--report-only", "--seeds=3"), "leave out"),
    ],
)
def test_bad_input_ends_with_one_message(
    more: tuple[str, ...], message: str, tiny_data: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "compare"
    command = [a for a in arguments(output, tiny_data) if not a.startswith(more[0].split("=")[0])]
    options = [a for a in more if a.startswith("--")]
    keys = [a for a in more if not a.startswith("--")]
    assert command_line.main([command[0], *options, *command[1:], *keys]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_other_settings_or_another_folder_are_refused(
    comparison: Path, tiny_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(comparison)
    assert command_line.main(arguments(comparison, tiny_data, "optim.generator.lr=0.5")) == 2
    assert "optim.generator.lr (was 0.0002, now 0.5)" in capsys.readouterr().err
    assert command_line.main(arguments(comparison, tiny_data, "--seeds=3")) == 2
    assert "--seeds (was 2 from 0, now 3 from 0)" in capsys.readouterr().err
    assert files(comparison) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert command_line.main(arguments(tmp_path, tiny_data)) == 2
    assert "holds no comparison" in capsys.readouterr().err
    assert command_line.main(["compare", "--output", str(tmp_path), "--report-only"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]


def test_an_unfinished_comparison_has_no_report_yet(
    comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(comparison, tmp_path)
    (folder / "runs" / RUNS[3] / MEASURED).unlink()
    (folder / REAL_CLIPS).unlink()
    assert command_line.main(["compare", "--output", str(folder), "--report-only"]) == 2
    message = capsys.readouterr().err
    assert "2 parts are not done yet, the first is 'keeping real clips'" in message


def test_what_cannot_be_read_leaves_no_half_report(
    comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(comparison, tmp_path)
    for name in ("plots", "sheets"):
        shutil.rmtree(folder / name)
    real, last = folder / REAL_CLIPS, folder / "runs" / RUNS[-1]
    clips = real.read_bytes()
    real.write_bytes(b"no clips")
    refused(folder, f"{REAL_CLIPS} is damaged", capsys)
    real.write_bytes(clips)
    for name in ("checkpoints", "generator"):
        shutil.rmtree(last / name)
    refused(folder, f"no trained generator in '{last}'", capsys)


def refused(folder: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    assert command_line.main(["compare", "--output", str(folder), "--report-only"]) == 2
    assert message in capsys.readouterr().err
    assert files(folder) == before
