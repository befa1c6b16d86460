"""A comparison and its data set: which one it was made with, and what it needs of it later."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import launch as command_line
from distgan.compare import command
from distgan.compare.command import Request
from distgan.compare.jobs import Job
from distgan.compare.plan import load_plan
from distgan.config import Config
from distgan.config_loading import load_config
from distgan.data.manifest import MANIFEST_NAME, read_manifest
from distgan.errors import DistganError, UserError
from tests.compare_runs import arguments, copy_of, files
from tests.tiny import TINY, make_tiny_data

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_the_same_data_may_lie_elsewhere_but_no_other(
    comparison: Path, tiny_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, moved = copy_of(comparison, tmp_path), str(tmp_path / "moved")
    shutil.copytree(tiny_data, moved)
    assert command_line.main(arguments(folder, moved)) == 0
    plan = load_plan(str(folder))
    assert plan is not None and plan.config.data.shards == moved
    assert plan.data_digest == read_manifest(tiny_data)[1]
    before, other = files(folder), make_tiny_data(tmp_path, num_videos=5)
    assert command_line.main(arguments(folder, other)) == 2
    message = capsys.readouterr().err
    assert f"data.shards={other}" in message and "the data set that it began with" in message
    assert files(folder) == before


def test_the_report_needs_neither_the_data_nor_its_old_place(
    comparison: Path, tmp_path: Path
) -> None:
    began = load_plan(str(comparison))
    assert began is not None and not Path(began.config.data.shards).exists()
    folder = copy_of(comparison, tmp_path)
    before = files(folder)
    for path in ("plots", "sheets"):
        shutil.rmtree(folder / path)
    (folder / "report.md").unlink()
    hidden = comparison.rename(tmp_path / "hidden")
    try:
        assert command_line.main(["compare", "--output", str(folder), "--report-only"]) == 0
    finally:
        hidden.rename(comparison)
    assert files(folder) == before


class Stopped:
    """Does no job: as if the machine were lost before the first."""

    def ask(self, question: Callable[[Any], Any], argument: Any) -> Any:
        return question(argument)

    def run(self, jobs: Sequence[Job]) -> None:
        raise DistganError("stopped")


def test_data_that_it_makes_itself_is_held_to_the_same(
    tiny_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "compare")
    request = Request(output=output, kinds=("self", "none"), steps=8, evaluations=2)
    config = load_config(overrides=TINY)

    def cut_short(folder: str, config: Config) -> None:
        raise DistganError("cut short")

    def make(folder: str, config: Config) -> None:
        shutil.copytree(tiny_data, config.data.shards, dirs_exist_ok=True)

    def make_another(folder: str, config: Config) -> None:
        manifest = Path(config.data.shards, MANIFEST_NAME)
        manifest.write_text(manifest.read_text() + "\n")

    for makes, digest, error in (
        (cut_short, "", "cut short"),
        (make, read_manifest(tiny_data)[1], "stopped"),
        (cut_short, read_manifest(tiny_data)[1], "cut short"),
    ):
        monkeypatch.setattr(command, "_make_data", makes)
        with pytest.raises(DistganError, match=error):
            command.compare(request, config, Stopped())
        plan = load_plan(output)
        assert plan is not None and plan.data_digest == digest
    monkeypatch.setattr(command, "_make_data", make_another)
    with pytest.raises(UserError, match="holds a comparison on another data set"):
        command.compare(request, config, Stopped())
