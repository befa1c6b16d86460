"""A machine on which two clusters run: a run finds its own, whatever it is asked to survive."""

from pathlib import Path

import pytest

from tests.cluster_runs import train_with_faults, without_cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def test_the_places_of_an_attempt_whose_controller_is_killed_are_given_back(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    """By a process of Ray Train's that has to find the run's own cluster first, beside `head`."""
    fault = {"kind": "controller killed", "place": "generator", "rank": 0, "step": 6}
    own = without_cluster(head)
    done = train_with_faults(own, tiny_data, tmp_path / "run", [fault], "cluster.hang_seconds=60")
    assert (tmp_path / "run-marker-0").exists()
    assert "multiple active Ray instances" not in done.stdout + done.stderr
