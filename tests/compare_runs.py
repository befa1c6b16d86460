"""Small comparisons of kinds of attention, and what their folders hold."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

from tests.tiny import TINY, launch

KINDS = ("self", "none")
RUNS = tuple(f"{kind}-seed{seed}" for seed in (0, 1) for kind in KINDS)


def arguments(output: Path, data: str, *more: str, steps: int = 8) -> list[str]:
    """Of `launch.py` for two kinds and two seeds, measured at half and at the end."""
    return [
        "compare", f"--output={output}", f"--kinds={','.join(KINDS)}", "--seeds=2",
        f"--steps={steps}", "--evaluations=2", "--demo-data", *TINY, "log.proxy_clips=16",
        f"data.shards={data}", *more,
    ]  # fmt: skip


def make_comparison(output: Path, data: str) -> Path:
    """Runs the whole of `arguments(output, data)`; returns the folder."""
    done = launch(*arguments(output, data), timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "After equally many training steps" in done.stdout
    assert str(output / "report.md") in done.stdout
    return output


def copy_of(comparison: Path, tmp_path: Path) -> Path:
    """A finished comparison to change; its runs are found by their place."""
    shutil.copytree(comparison, tmp_path / "copy")
    return tmp_path / "copy"


def files(folder: Path) -> dict[str, bytes]:
    """Path in the folder -> content, of all files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    """Of a CSV file."""
    return list(csv.DictReader((folder / name).open(encoding="utf-8")))


def results(folder: Path) -> dict[str, Any]:
    """What results.json holds."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found
