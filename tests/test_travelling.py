"""A job takes the code along, and nothing of what was made with it; Ray's own packager says so."""

import shutil
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import RAY_RUNTIME_ENV_DEFAULT_EXCLUDES
from ray._private.runtime_env.packaging import create_package

from cluster.submit import EXCLUDED
from tests.tiny import REPOSITORY

CODE = ("launch.py", "pyproject.toml", "distgan", "cluster", "tune", "benchmarks")
CONFIGURATIONS = ("mine.yaml", "demo.yaml", "runs.yaml", "data.yaml")
MADE = (
    "data/mine/manifest.json",  # as in the README
    "data/mine/.prepare/journal.jsonl",
    "new_videos/video_000000.mp4",
    "videos/mine.avi",
    "runs/small-64-0/checkpoints/step_00000004/rank-00000-01234567.safetensors",
    "runs/small-64-0/metrics.jsonl",
    "sweeps/first/trials.jsonl",
    "compare/compare.json",
    "demo/data/manifest.json",
    "demo/contact_sheet.png",
    "data_sheet.png",
    "elsewhere/shard-000000.tar",
    "elsewhere/generator/model.safetensors",
    "elsewhere/video.mp4",
    ".venv/bin/python",
    "venv/bin/python",
    "env/bin/python",
    ".tox/py311/bin/python",
    ".nox/tests/bin/python",
    ".env",
    ".git/HEAD",
    ".mypy_cache/3.11/x.json",
    "distgan/__pycache__/errors.cpython-311.pyc",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code, and in it all that a user may have made."""
    root = tmp_path_factory.mktemp("travelling")
    for name in CODE:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    for name in CONFIGURATIONS:
        (root / name).write_text("seed: 3")
    for name in MADE:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made")
    other_disk = tmp_path_factory.mktemp("other_disk")
    (other_disk / "config.yaml").write_text("made")
    shutil.rmtree(root / "runs")
    (root / "runs").symlink_to(other_disk)
    return root


def packed(folder: Path, excludes: list[str], package: Path) -> set[str]:
    """Names of the files that travel."""
    always = RAY_RUNTIME_ENV_DEFAULT_EXCLUDES.split(",")
    create_package(str(folder), package, include_gitignore=True, excludes=[*always, *excludes])
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.mark.parametrize("by_submit", [True, False])
def test_the_code_travels_and_nothing_that_was_made(
    by_submit: bool, folder: Path, tmp_path: Path
) -> None:
    """By `submit`, whatever .gitignore says; and by plain `ray job submit`, as it says."""
    if by_submit:
        (folder / ".gitignore").unlink(missing_ok=True)
    else:
        shutil.copy(REPOSITORY / ".gitignore", folder)
    names = packed(folder, EXCLUDED if by_submit else [], tmp_path / "package.zip")
    code = {
        str(path.relative_to(folder))
        for name in CODE
        for path in [folder / name, *(folder / name).rglob("*")]
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.startswith("distgan/data/") for name in code)
    assert names - {".gitignore"} == code | set(CONFIGURATIONS)
