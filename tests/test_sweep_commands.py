"""launch.py tune --status, --report, --export and --retrain on folders of sweeps."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distgan import storage
from distgan.local import train_locally
from distgan.run_folder import alone_in, saved_config
from launch import main
from tests import simulated_sweep
from tests.object_servers import BUCKET, OPTIONS, options_for, rclone_server, with_options
from tests.simulated_sweep import NoisyQuadratic
from tests.sweep_folders import (
    BASE,
    LR,
    METRIC,
    add_trial,
    make_sweep,
    record,
    spec_of,
    start_sweep,
)
from tests.tiny import REPOSITORY, launch
from tune.records import trial_folder, write_record
from tune.trial import trial_config
from tune.winner import retrained_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_data: str) -> str:
    """A sweep of a base that was not trained and a winner that was."""
    folder = str(tmp_path_factory.mktemp("trained"))
    spec = spec_of()
    start_sweep(folder, spec, tiny_data)
    add_trial(folder, record(BASE, 50.0))
    winner = record("g0", 40.0, seed=1, overrides={LR: 1e-3})
    base = saved_config(folder)
    assert base is not None
    job = {"trial_id": winner.trial_id, "overrides": winner.overrides, "seed": 1, "parent": "",
           "until_step": 0, "parent_step": 0}  # fmt: skip
    train_locally(trial_config(base, spec, folder, job), show_progress=False)
    write_record(folder, winner)
    return folder


def test_status_shows_the_trials_best_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(str(tmp_path), trials=3)
    running = record("g9", None, status="running", step=0, reason="")
    write_record(str(tmp_path), running)
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["tune", "--status", str(tmp_path)]) == 0
    first, header, *rows = capsys.readouterr().out.splitlines()
    assert "5 trials: 4 finished, 1 running" in first
    assert header.split()[:6] == ["rank", "trial", "status", "step", "seconds", METRIC]
    values = [float(row.split()[5]) for row in rows[:4]]
    assert values == sorted(values)
    assert "g9-s0" in rows[-1] and "running" in rows[-1]
    assert sorted(path for path in tmp_path.rglob("*")) == before  # it only looks


def test_a_population_follows_from_its_seed_as_the_help_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = simulated_sweep.spec_of(
        "pbt", {simulated_sweep.RATE: {"loguniform": [1e-4, 1.0]}},
        num_trials=6, max_steps=40, perturbation_steps=10, seed=5,
    )  # fmt: skip
    one, many = (
        simulated_sweep.simulate(spec, lambda *_: NoisyQuadratic(), at_a_time=at_a_time).records
        for at_a_time in (1, 6)
    )
    assert one == many and any(record.parent for record in one.values())
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    promised, _, refused = text.partition("Nothing is promised")
    assert "so does a whole pbt sweep" in promised and "pbt" not in refused.partition(".")[0]


def test_status_of_a_sweep_that_has_just_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_sweep(str(tmp_path), spec_of())
    assert main(["tune", "--status", str(tmp_path)]) == 0
    assert "none yet" in capsys.readouterr().out


def test_status_tells_a_sweep_that_goes_on_from_one_that_was_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def first_line() -> str:
        assert main(["tune", "--status", str(tmp_path)]) == 0
        return capsys.readouterr().out.splitlines()[0]

    start_sweep(str(tmp_path), spec_of(num_trials=1))
    write_record(str(tmp_path), record(BASE, 50.0))
    write_record(str(tmp_path), record("0000", None, status="running", step=0, reason=""))
    assert "interrupted" in first_line() and "run the same command again" in first_line()
    with alone_in(str(tmp_path)):
        assert "1 running; the sweep goes on" in first_line()
    holder = "import sys, time; from distgan.run_folder import alone_in\n"
    holder += "with alone_in(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        assert "the sweep goes on" in first_line()
        process.kill()
        process.wait()
    assert "interrupted" in first_line()
    write_record(str(tmp_path), record("0000", 40.0))
    assert "2 finished; the sweep is over" in first_line()


@pytest.mark.parametrize("action", ["status", "report", "export", "retrain"])
def test_what_is_no_sweep_is_refused(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", f"--{action}", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("action", ["export", "retrain"])
def test_a_sweep_without_a_value_has_no_winner(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_sweep(str(tmp_path), spec_of())
    assert main(["tune", f"--{action}", str(tmp_path)]) == 2
    assert f"no trial has a value of {METRIC} yet" in capsys.readouterr().err


def test_keys_of_a_run_are_refused_where_they_have_no_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(str(tmp_path), trials=1)
    assert main(["tune", "--status", str(tmp_path), "seed=3"]) == 2
    assert "keys of the storage section only" in capsys.readouterr().err


def test_the_winner_s_generator_is_exported_and_makes_videos(trained: str, tmp_path: Path) -> None:
    assert main(["tune", "--export", trained]) == 0
    there = Path(trained) / "best_generator"
    own = Path(trial_folder(trained, "g0-s1")) / "generator"
    assert (there / "model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
    assert json.loads((there / "generator.json").read_text())["step"] == 12
    output = str(tmp_path / "videos")
    assert main(["generate", "--run", str(there), "--output", output, "--num", "2"]) == 0
    assert len(list((tmp_path / "videos").rglob("*.mp4"))) == 2


def test_a_winner_without_a_generator_names_the_way_out(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "copy")
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("best_generator", "best"))
    for name in ("checkpoints", "generator"):
        shutil.rmtree(os.path.join(trial_folder(folder, "g0-s1"), name))  # noqa: PTH118
    assert main(["tune", "--export", folder]) == 2
    assert f"--retrain {folder}" in capsys.readouterr().err
    assert not (tmp_path / "copy" / "best_generator").exists()


def test_retraining_is_another_longer_run_that_can_be_resumed(trained: str) -> None:
    done = launch("tune", "--retrain", trained, "train.max_steps=14")
    assert done.returncode == 0 and "stopped at step 14" in done.stdout, done.stderr
    config = saved_config(os.path.join(trained, "best"))  # noqa: PTH118
    assert config is not None and config.seed == 1 and config.optim.generator.lr == 1e-3
    done = launch("tune", "--retrain", trained, "train.max_steps=16")
    assert done.returncode == 0 and "stopped at step 16" in done.stdout, done.stderr
    done = launch("tune", "--retrain", trained, "seed=7")  # a fair measurement, beside that one
    assert done.returncode == 0 and "best-seed7" in done.stdout, done.stderr
    # The sweep is as it was: the new run is none of its trials.
    assert main(["tune", "--report", trained]) == 0
    assert "best" not in {path.name for path in Path(trained, "trials").iterdir()}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "best"),
        (["train.max_steps=99", "log.interval_steps=3"], "best"),  # the same run, longer
        (["seed=7", "train.max_steps=99"], "best-seed7"),
        (["seed=0"], "best"),
        (["model.attention.window=[1,3,3]"], r"best-model\.attention\.window_1_3_3_-\w{8}"),
        (["run.dir=/elsewhere", "seed=7"], "elsewhere"),
    ],
)
def test_what_makes_a_retraining_another_run_is_in_its_folder_s_name(
    tmp_path: Path, overrides: list[str], name: str
) -> None:
    start_sweep(str(tmp_path), spec_of())
    add_trial(str(tmp_path), record(BASE, 10.0))
    found = Path(retrained_config(str(tmp_path), overrides).run.dir)
    assert re.fullmatch(name, found.name)
    assert found.parent == (Path("/") if name == "elsewhere" else tmp_path)


def test_all_of_it_works_on_object_storage(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rclone_server(tmp_path / "s3") as port, with_options(options_for(port)):
        url = f"s3://{BUCKET}/sweeps/one"
        for path in Path(trained).rglob("*"):
            if path.is_file():
                name = path.relative_to(trained).as_posix()
                storage.write_bytes(storage.join(url, name), path.read_bytes())
        options = [*OPTIONS, f"storage.endpoint_url=http://127.0.0.1:{port}"]
        assert main(["tune", "--status", url, *options]) == 0
        shown = capsys.readouterr().out
        assert "g0-s1" in shown and "can't be told from its folder" in shown
        assert main(["tune", "--report", url, *options]) == 0
        assert f"--config {url}/best.yaml" in capsys.readouterr().out
        assert main(["tune", "--export", url, *options]) == 0
        assert storage.exists(f"{url}/best_generator/model.safetensors")
