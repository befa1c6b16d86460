"""Who hangs, who is waited for, and what a look at a worker tells."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cluster import hangs
from cluster.attempt import Attempt, FaultError
from cluster.board import RankFacts, Snapshot
from cluster.process_group import stop_process_group
from cluster.ranks import run_on_ranks
from cluster.rendezvous import bound_groups
from distgan.config import Config
from distgan.config_loading import with_values

NOW, LIMIT_S = 100.0, 10.0


def facts(*, silent_s: float = 0, still_s: float = 0, step: int = 3, **more: bool) -> RankFacts:
    return RankFacts(
        pid=1, node_id="n", host="h", stacks="s", step=step,
        advanced=NOW - still_s, heard=NOW - silent_s, **more,
    )  # fmt: skip


def snapshot(*ranks: RankFacts, outcome: dict[str, object] | None = None) -> Snapshot:
    return Snapshot(NOW, dict(enumerate(ranks)), [], outcome)


def test_ranks_that_have_ended_hang_no_more() -> None:
    seen = snapshot(facts(still_s=20, silent_s=20, ended=True), facts(still_s=20, step=5))
    assert hangs.hanging(seen, LIMIT_S) == [1]
    assert hangs.suspects(seen) == [1]
    assert hangs.hanging(snapshot(facts(still_s=20, ended=True)), LIMIT_S) == []


def test_of_ranks_that_wait_for_each_other_the_silent_and_the_last_are_named() -> None:
    still = facts(still_s=20)
    assert hangs.suspects(snapshot(still, facts(still_s=20, silent_s=20))) == [1]
    assert hangs.suspects(snapshot(still, facts(still_s=20, step=2))) == [1]
    assert hangs.hanging(snapshot(facts(still_s=9), facts()), LIMIT_S) == []


def test_an_attempt_is_over_with_its_outcome_or_its_last_rank() -> None:
    assert not hangs.over(snapshot(), 2)
    assert not hangs.over(snapshot(facts(ended=True)), 2), "the other has not begun"
    assert not hangs.over(snapshot(facts(ended=True), facts()), 2)
    assert hangs.over(snapshot(facts(ended=True), facts(ended=True)), 2)
    assert hangs.over(snapshot(facts(), facts(), outcome={"step": 3}), 2)


def test_ranks_that_have_not_begun_are_known() -> None:
    assert hangs.missing(snapshot(facts(ended=True)), 3) == [1, 2]


def test_an_attempt_ends_whose_ranks_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    monkeypatch.setattr(hangs, "describe", lambda snapshot: "")
    watched = object.__new__(Attempt)  # without its process of Ray's
    watched.config, watched.size = with_values(Config(), {"cluster.hang_seconds": LIMIT_S}), 2
    watched.last = snapshot(facts())
    watched.started = time.monotonic() - 14
    watched._check_progress()
    watched.started -= 2
    with pytest.raises(FaultError, match=r"^rank 1 did not start within 15 s"):
        watched._check_progress()
    watched.last = snapshot(facts(), facts())
    watched._check_progress()


def test_no_process_group_gives_up_before_the_watch_does() -> None:
    """DeepSpeed makes groups without a word on their timeout."""
    (timeouts_s,) = run_on_ranks(timeouts_of_groups, (2000,), world_size=1)
    assert timeouts_s == [2000.0, 2000.0]


def timeouts_of_groups(timeout_s: int) -> list[float]:
    stop_process_group()
    bound_groups(timeout_s)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    groups = [torch.distributed.group.WORLD, torch.distributed.new_group([0])]
    device = torch.device("cpu")
    return [g._get_backend(device).options._timeout.total_seconds() for g in groups]


def test_a_look_tells_stacks_and_survives_a_worker_that_has_left(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    with stacks.open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        assert "in test_a_look_tells_stacks" in hangs._look(os.getpid(), str(stacks))
        faulthandler.unregister(signal.SIGUSR1)
    stacks.unlink()
    told = hangs._look(os.getpid(), str(stacks))
    assert told.startswith("process state") and told.endswith("has left its training meanwhile")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert hangs._look(process.pid, str(stacks)) == "the process is gone"
