"""A menu of faults, by chance: whatever befalls a run of two workers, it ends as if undisturbed.

Several in each run, at all stages of ZeRO, and over the ends of epochs (of 5 steps). A command that
was killed is run again. For another menu, set DISTGAN_FAULT_SEED to another number than 0.
"""

import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster_runs import assert_same_run, train, train_with_faults
from tests.faulty_worker import FAULTS, PLACES, noted

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(400)]

CASES, IN_A_RUN = 50, 5
INTERVAL = 4
"""Of checkpoints, in `tests.tiny.TINY`."""
_rng = random.Random(int(os.environ.get("DISTGAN_FAULT_SEED", "0")))
MENU = [
    {
        "kind": kind,
        "place": _rng.choice(sorted(PLACES)),
        "rank": _rng.randrange(2),
        "step": _rng.randrange(1, 12),
    }
    for kind in (sorted(FAULTS) * CASES)[:CASES]
]
RUNS = [MENU[start : start + IN_A_RUN] for start in range(0, CASES, IN_A_RUN)]


def stages(stage: int) -> list[str]:
    return [f"cluster.{name}.zero_stage={stage}" for name in ("generator", "discriminator")]


@pytest.fixture(scope="module")
def calm(
    head: dict[str, str], tiny_data: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Undisturbed runs by stage."""
    folder = tmp_path_factory.mktemp("calm")

    def run_of(stage: int) -> Path:
        run = folder / str(stage)
        if not run.exists():
            train(head, tiny_data, run, *stages(stage))
        return run

    return run_of


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_a_run_ends_as_if_undisturbed(
    number: int,
    head: dict[str, str],
    calm: Callable[[int], Path],
    tiny_data: str,
    tmp_path: Path,
) -> None:
    faults, stage = [_possible(fault) for fault in RUNS[number]], number % 4
    run = tmp_path / "run"
    more = ["cluster.hang_seconds=15", f"cluster.max_failures={2 * IN_A_RUN}", *stages(stage)]
    kinds = [fault["kind"] for fault in faults]
    more += ["data.num_workers=1"] * ("loader killed" in kinds)
    for _ in range(kinds.count("driver killed")):
        train_with_faults(head, tiny_data, run, faults, *more, code=-signal.SIGKILL, timeout_s=800)
    done = train_with_faults(head, tiny_data, run, faults, *more, timeout_s=800)
    come = [(tmp_path / f"run-marker-{i}").exists() for i in range(IN_A_RUN)]
    assert all(come), list(zip(come, faults, strict=True))
    print(
        *(line for line in (done.stdout + done.stderr).splitlines() if "failed" in line), sep="\n"
    )
    assert_no_fault_costs_more(run)
    assert_same_run(calm(stage), run)


def assert_no_fault_costs_more(run: Path) -> None:
    """Than the steps since the last checkpoint that was due before it, and, where that one was
    still being written, the interval before it."""
    starts = sorted(noted(Path(f"{run}-starts")), key=lambda start: start.seconds)
    assert [start.step for start in starts] == sorted(start.step for start in starts)
    for marker in run.parent.glob(f"{run.name}-marker-*"):
        for fault in noted(marker):
            later = [start.step for start in starts if start.seconds > fault.seconds]
            if later:  # else the run came to its end in spite of it
                print(f"a fault in step {fault.step}: going on from step {later[0]}")
                due = (fault.step - 1) // INTERVAL * INTERVAL
                assert later[0] >= due - INTERVAL, (fault, starts)


def _possible(fault: dict[str, Any]) -> dict[str, Any]:
    if fault["kind"] == "loader killed":  # which lives from the first batch to the last
        return fault | {"place": "generator"}
    if fault["place"] == "commit":  # rank 0 alone does
        return fault | {"rank": 0}
    return fault | {"step": -1} if fault["place"] == "start" else fault


@pytest.mark.parametrize("ranks", [[1], [0, 1]])
def test_ranks_that_are_stopped_before_they_train_are_named(
    ranks: list[int],
    head: dict[str, str],
    calm: Callable[[int], Path],
    tiny_data: str,
    tmp_path: Path,
) -> None:
    """Where the others wait for them, and where nobody trains."""
    run = tmp_path / "run"
    soon = head | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
    faults = [{"kind": "SIGSTOP", "place": "start", "rank": r, "step": -1} for r in ranks]
    done = train_with_faults(soon, tiny_data, run, faults, "cluster.hang_seconds=15", *stages(1))
    told = done.stdout + done.stderr
    names = ", ".join(f"rank {rank}" for rank in ranks)
    assert f"{names} made no step for 15 s" in told or f"{names} did not start within 35 s" in told
    for rank in ranks:
        assert re.search(rf"rank {rank} \(pid \d+ on \S+\), starting.*process state T", told)
    assert_same_run(calm(1), run)
