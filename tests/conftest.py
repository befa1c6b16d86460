"""Fixtures that several test files share."""

import functools
import gc
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.cluster_runs import CalmJob, make_calm_job
from tests.compare_runs import make_comparison
from tests.ray_heads import ray_head
from tests.tiny import make_tiny_data


def pytest_configure() -> None:
    """A shell's background ignores Ctrl-C, and so would what the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that start Ray clusters come first, as they take longest."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Of the processes that share the tests, one takes all that start Ray clusters; a file's tests
    stay together, so that they share what is costly to set up."""
    return _RayTogether(config, log)


class _RayTogether(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "ray" if _starts_ray(file) else file


@functools.cache
def _starts_ray(file: str) -> bool:
    return "pytest.mark.ray" in (Path(__file__).parent.parent / file).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a prepared data set of 40 clips that fits `tests.tiny.TINY`."""
    return make_tiny_data(Path(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def comparison(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished comparison of `tests.compare_runs.KINDS`; tests change copies of it.

    Its data set is no longer where it was; `tiny_data` is the same one."""
    folder = tmp_path_factory.mktemp("comparison")
    shutil.copytree(tiny_data, folder / "data")
    make_comparison(folder / "compare", str(folder / "data"))
    shutil.rmtree(folder / "data")
    return folder / "compare"


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
    return make_calm_job(head, tiny_data, tmp_path_factory.mktemp("calm") / "calm-job")


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_the_tests() -> Iterator[None]:
    """A process that somebody left behind could hold up the end of the whole run."""
    yield
    gc.collect()
    assert not multiprocessing.active_children()
