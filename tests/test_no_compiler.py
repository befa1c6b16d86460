"""A machine without a compiler trains under ZeRO: nothing of DeepSpeed's is built at the start."""

from pathlib import Path

import pytest

from cluster.engine_difference import largest, measure
from cluster.ranks import run_on_ranks
from tests.test_zero_steps import OFFLOADED, PROMISED, case

CONFIGS = [case((1, 2)), case((3, 3), train__precision="bf16", **OFFLOADED)]


def test_no_compiler_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, "no-compiler")
    built = tmp_path / "built"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built))
    found = run_on_ranks(measure, (CONFIGS, 1), world_size=2)[0]
    assert all(largest(steps).within(PROMISED) for steps in found), found
    assert not built.exists()
