"""A menu of faults, by chance: whatever befalls a run of two workers, it ends as if undisturbed."""

import random
from pathlib import Path

import pytest

from tests.cluster_runs import assert_same_run, train, train_with_faults
from tests.faulty_worker import FAULTS, PLACES

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(400)]

CASES = 50
_rng = random.Random(0)
MENU = [
    {
        "kind": kind,
        "place": _rng.choice(sorted(PLACES)),
        "rank": _rng.randrange(2),
        "step": _rng.randrange(1, 12),
    }
    for kind in (sorted(FAULTS) * CASES)[:CASES]
]


@pytest.fixture(scope="module")
def calm(head: dict[str, str], tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("calm") / "run"
    train(head, tiny_data, run)
    return run


@pytest.mark.parametrize("fault", MENU, ids=lambda fault: "-".join(map(str, fault.values())))
def test_a_run_ends_as_if_undisturbed(
    fault: dict[str, str | int],
    head: dict[str, str],
    calm: Path,
    tiny_data: str,
    tmp_path: Path,
) -> None:
    if fault["place"] == "commit":  # rank 0 alone does
        fault = fault | {"rank": 0}
    run = tmp_path / "run"
    done = train_with_faults(head, tiny_data, run, [fault], "cluster.hang_seconds=15")
    assert (tmp_path / "run-marker-0").exists(), "the fault did not come"
    assert "the workers failed" in done.stdout + done.stderr
    assert_same_run(calm, run)
