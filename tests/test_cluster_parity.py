"""What the start of a run makes of the parity check, without a cluster."""

import contextlib
from pathlib import Path

import pytest

import launch
from cluster import job, parity
from cluster.engine_difference import Difference
from distgan.checkpoint import committed_steps
from tests.cluster_runs import arguments
from tests.tiny import TINY


def test_no_run_starts_on_engines_that_are_wrong(
    tiny_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Exit code 2, with what was measured; `cluster.parity_check` alone makes the difference."""
    wrong = Difference(
        weights=0.03, gradients=0.0, outputs=0.0, losses=0.0, penalties=0.0, gradient_norms=0.0
    )
    monkeypatch.setattr(parity, "run_on_ranks", lambda *_, **__: [([wrong],)])
    monkeypatch.setattr(job, "RAY_TRAIN_ENVIRONMENT", {})
    monkeypatch.setattr(job, "_connected", contextlib.nullcontext)
    monkeypatch.setattr(job, "_check_data", lambda config: None)
    command = arguments(tiny_data, tmp_path / "run", "cluster.num_workers=2", "train.device=cpu")
    assert launch.main([*command, "cluster.parity_check=true"]) == 2
    told = capsys.readouterr().err
    assert "do not compute what plain PyTorch does" in told and "NOT EQUAL" in told
    assert "weights differ by 3.0e-02 (limit 1e-03)" in told
    assert "cluster.discriminator.zero_stage" in told and "Traceback" not in told
    assert not committed_steps(str(tmp_path / "run"))


def test_the_doctor_refuses_what_training_would(capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["cluster.num_workers=3"], ["cluster.num_workers=2", "cluster.min_workers=3"]):
        assert launch.main(["doctor", *TINY, *more]) == 2
        assert more[-1].partition("=")[0] in capsys.readouterr().err
