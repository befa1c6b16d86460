"""What the disk, a neighbour or a damaged file can do to a command: one message, nothing left."""

import errno
import os
from pathlib import Path

import pytest

import launch as launch_module
from distgan import storage
from distgan.checkpoint import committed_steps
from distgan.config import Config
from distgan.config_loading import load_config, parse_yaml, with_values
from distgan.errors import UserError
from distgan.run_folder import LOCK, alone_in, start_or_resume
from tests.checkpoints import weights_of
from tests.damage import flip_bit
from tests.tiny import TINY, launch

Output = pytest.CaptureFixture[str]


def one_message(output: Output, *arguments: str) -> str:
    """Runs a command in this process; returns the one line that it is refused with."""
    assert launch_module.main(arguments) == 2
    lines = output.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("launch.py ")]
    assert len(said) == 1, lines
    return said[0]


@pytest.fixture(scope="module")
def run_dir(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run with several checkpoints."""
    folder = tmp_path_factory.mktemp("refusals") / "run"
    done = launch("train", *TINY, f"data.shards={tiny_data}", f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_second_run_in_the_folder_is_refused_and_the_first_one_untouched(
    tiny_data: str, tmp_path: Path, capfd: Output
) -> None:
    folder = tmp_path / "run"
    with alone_in(str(folder)):
        before = sorted(folder.iterdir())
        with (
            pytest.raises(UserError, match="another process is training there"),
            alone_in(str(folder)),
        ):
            raise AssertionError("two were let in")
        assert sorted(folder.iterdir()) == before
    assert not folder.exists()  # nothing came of it
    arguments = ("train", *TINY, f"data.shards={tiny_data}", f"run.dir={folder}")
    folder.mkdir()
    (folder / "config.yaml").write_text("")  # stands for a run; refused for another reason below
    assert "is damaged: it lacks" in one_message(capfd, *arguments)


def test_a_first_start_that_was_cut_short_does_not_lock_its_folder(tmp_path: Path) -> None:
    """Killed before the first configuration was saved: what lies there then is no reason to refuse
    the same command."""
    config = with_values(Config(), {"run.dir": str(tmp_path)})
    left = (LOCK, ".config.yaml.partial", "ray/small-64-0/.validate_storage_marker")
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert start_or_resume(config) == config
    (tmp_path / "holiday.mp4").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        start_or_resume(config)


def test_a_start_while_another_trains_ends_with_2(run_dir: Path, tiny_data: str) -> None:
    with alone_in(str(run_dir)):
        done = launch(
            "train", *TINY, f"data.shards={tiny_data}", f"run.dir={run_dir}", "train.max_steps=20"
        )
    assert done.returncode == 2
    assert "another process is training there" in done.stderr
    assert committed_steps(str(run_dir))[-1] == 12


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_generate_on_a_full_or_read_only_disk_leaves_nothing(
    number: int, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Output
) -> None:
    flush, calls = os.fsync, 0

    def fails_late(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fails_late)
    output = tmp_path / "new"
    said = one_message(capfd, "generate", "--run", str(run_dir), "--output", str(output))
    assert os.strerror(number) in said and "video_" in said
    assert list(output.iterdir()) == []


def test_other_faults_of_files_keep_their_traceback(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str, data: bytes) -> None:
        raise OSError(errno.EIO, "a broken disk", path)

    monkeypatch.setattr(storage, "write_bytes", broken)
    with pytest.raises(OSError, match="a broken disk"):
        launch_module.main(["generate", "--run", str(run_dir), "--output", str(tmp_path / "new")])


@pytest.mark.parametrize("command", ["train", "generate", "doctor"])
def test_a_file_where_a_folder_is_needed(
    command: str, run_dir: Path, tiny_data: str, tmp_path: Path, capfd: Output
) -> None:
    place = tmp_path / "file"
    place.write_text("mine")
    arguments = {
        "train": ("train", *TINY, f"data.shards={tiny_data}", f"run.dir={place}"),
        "doctor": ("doctor", *TINY, f"run.dir={place}"),
        "generate": ("generate", "--run", str(run_dir), "--output", str(place)),
    }
    assert str(place) in one_message(capfd, *arguments[command])
    assert place.read_text() == "mine"


def test_generate_keeps_out_of_folders_that_hold_something_else(
    run_dir: Path, tmp_path: Path, capfd: Output
) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "video_000000.mp4").write_text("my own video")
    command = ("generate", "--run", str(run_dir), "--output", str(output), "--num", "3")
    assert "holds something else" in one_message(capfd, *command)
    assert (output / "video_000000.mp4").read_text() == "my own video"


def test_generate_again_leaves_no_older_videos(run_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "new"
    command = ["generate", "--run", str(run_dir), "--output", str(output), "--num"]
    for number in (5, 2):
        assert launch_module.main([*command, str(number)]) == 0
        assert len(list(output.glob("video_*.mp4"))) == number


def test_generate_names_the_damaged_checkpoint_that_it_passes_by(
    run_dir: Path, tmp_path: Path
) -> None:
    newest = weights_of(run_dir / "checkpoints" / "step_00000012")
    before = newest.read_bytes()
    flip_bit(newest, -100)
    try:
        done = launch("generate", "--run", str(run_dir), "--output", str(tmp_path / "new"))
    finally:
        newest.write_bytes(before)
    assert done.returncode == 0, done.stderr
    assert "damaged checkpoint passed by" in done.stdout + done.stderr
    assert "generator of step 8" in done.stdout


def test_damaged_small_files_of_a_run_are_told(
    tiny_data: str, run_dir: Path, tmp_path: Path, capfd: Output
) -> None:
    arguments = ("train", *TINY, f"data.shards={tiny_data}", f"run.dir={tmp_path}")
    whole = (run_dir / "config.yaml").read_bytes()
    for damaged in (b"\xff\xfe\x00binary", whole[: len(whole) // 2], b""):
        (tmp_path / "config.yaml").write_bytes(damaged)
        assert f"{tmp_path}/config.yaml" in one_message(capfd, *arguments)
    (tmp_path / "config.yaml").write_bytes(whole)
    (tmp_path / "DIVERGED.json").write_text("{")
    assert launch_module.main(arguments) == 3


@pytest.mark.parametrize(
    ("metric", "key"),
    [("quality/proxy_frechet_ema", "log.proxy_interval_steps"),
     ("loss/generator", "log.interval_steps"), ("penalty/r2", "loss.penalty_interval")],
)  # fmt: skip
def test_a_plateau_shorter_than_a_second_measurement_takes_is_refused(
    metric: str, key: str
) -> None:
    several = ["log.interval_steps=1", f"stop.metric={metric}", f"{key}=10"]
    load_config(overrides=[*several, "stop.plateau_steps=10"])
    with pytest.raises(UserError, match=rf"stop\.plateau_steps=9 .* \({key}=10\)"):
        load_config(overrides=[*several, "stop.plateau_steps=9"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stop.metric=quality/typo", "stop.target=1"], "stop.metric=quality/typo is not logged"),
        (["stop.plateau_steps=9", "log.proxy_interval_steps=0"], "log.proxy_interval_steps=0"),
        (["stop.metric=penalty/r1", "stop.target=1", "loss.penalty=r2"], "loss.penalty=r2"),
        (["stop.metric=penalty/r2", "stop.target=1", "loss.penalty=none"], "loss.penalty=none"),
    ],
)
def test_a_stop_rule_that_could_never_fire_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(overrides=overrides)


def test_a_key_that_comes_twice_is_refused() -> None:
    with pytest.raises(UserError, match="'max_steps' comes twice"):
        parse_yaml("train:\n  max_steps: 5\n  max_steps: 6\n", "my.yaml")


def test_an_empty_folder_name_is_refused(tmp_path: Path, capfd: Output) -> None:
    said = one_message(capfd, "prepare", "--input", "", "--output", str(tmp_path / "new"))
    assert "empty text" in said
