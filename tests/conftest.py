"""Fixtures that several test files share."""

import gc
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster_runs import CalmJob, make_calm_job
from tests.ray_heads import ray_head
from tests.tiny import make_tiny_data


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes share the tests: one begins with all that start Ray clusters, the other takes
    the rest; a file's tests stay together, so that they share what is costly to set up."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        name = "ray" if item.get_closest_marker("ray") else item.path.name
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a prepared data set of 40 clips that fits `tests.tiny.TINY`."""
    return make_tiny_data(Path(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def head() -> Iterator[dict[str, str]]:
    """A Ray cluster of two CPUs: the environment in which programs join it."""
    with ray_head() as environment:
        yield environment


@pytest.fixture(scope="session")
def calm_job(
    head: dict[str, str], tiny_data: str, tmp_path_factory: pytest.TempPathFactory
) -> CalmJob:
    """A run of two workers that a job made undisturbed; many tests compare theirs with it."""
    return make_calm_job(head, tiny_data, tmp_path_factory.mktemp("calm") / "run")


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_the_tests() -> Iterator[None]:
    """A process that somebody left behind could hold up the end of the whole run."""
    yield
    gc.collect()
    assert not multiprocessing.active_children()
