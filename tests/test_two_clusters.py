"""A machine on which two clusters run: a run finds its own, whatever it is asked to survive."""

from pathlib import Path

import pytest

from tests.cluster_runs import train_with_faults
from tests.ray_heads import ray_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def test_the_places_of_an_attempt_whose_controller_is_killed_are_given_back(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    """By a process of Ray Train's that has to find the cluster first."""
    fault = {"kind": "controller killed", "place": "generator", "rank": 0, "step": 6}
    with ray_head(num_cpus=1):
        done = train_with_faults(head, tiny_data, tmp_path / "run", [fault])
    assert (tmp_path / "run-marker-0").exists()
    assert "multiple active Ray instances" not in done.stdout + done.stderr
