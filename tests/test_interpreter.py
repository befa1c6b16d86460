"""A Python without the packages says so in one line, before anything is imported."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from distgan.interpreter import REQUIRED
from tests.tiny import REPOSITORY


def test_a_python_without_the_packages_is_named_with_the_remedy() -> None:
    """`-S` leaves out site-packages, as in a job that runs under the system's Python."""
    done = subprocess.run(
        [sys.executable, "-S", "launch.py", "train", "data.shards=/data"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"launch.py: {sys.executable} lacks PIL, av, botocore")
    assert 'PATH="$PWD/.venv/bin:$PATH" ray start --head' in line
    assert not done.stdout


def test_the_packages_are_those_of_pyproject() -> None:
    text = Path(REPOSITORY, "pyproject.toml").read_text()
    names = {
        re.split(r"[\[<>=]", line)[0] for line in tomllib.loads(text)["project"]["dependencies"]
    }
    imports = packages_distributions()
    for module in REQUIRED:
        assert names & {name.lower() for name in imports[module]}, module
    found = {name.lower() for module in REQUIRED for name in imports[module]}
    assert names <= found
