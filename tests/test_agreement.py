"""A worker of a run compares what it sees with the other ranks before it trains."""

import shutil
from pathlib import Path

import torch

from cluster.agreement import versions
from cluster.ranks import run_on_ranks
from cluster.worker import _make_trainer as make_trainer
from distgan.config_loading import load_config
from distgan.errors import UserError
from tests.tiny import TINY


def refusal(data: list[str], run: str) -> str:
    """On a rank, which sees data of its own: what a worker is told at its start."""
    own = data[torch.distributed.get_rank()]
    config = load_config(overrides=[*TINY, f"data.shards={own}", f"run.dir={run}"])
    try:
        make_trainer(config, versions())
    except UserError as error:
        return str(error)
    return ""


def test_workers_that_see_different_data_do_not_train(tiny_data: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    manifest = other / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    run = str(tmp_path / "run")
    Path(run).mkdir()
    told = run_on_ranks(refusal, ([tiny_data, str(other)], run), world_size=2)
    assert all("rank 1 sees another data set there than rank 0" in message for message in told)
    assert run_on_ranks(refusal, ([tiny_data, tiny_data], run), world_size=2) == ["", ""]
