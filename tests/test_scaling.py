"""How many workers a run takes: batch and lanes divide evenly, and lost machines are waited for."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster import devices, job
from cluster.scaling import allowed_sizes, check_sizes, size_for
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.errors import UserError
from distgan.run_folder import StopSignals


def config(**cluster: Any) -> Config:
    values = {"train.batch_size": 24, "data.lanes": 12}
    return with_values(Config(), values | {f"cluster.{k}": v for k, v in cluster.items()})


def test_sizes_divide_batch_and_lanes_within_the_bounds() -> None:
    assert allowed_sizes(config(num_workers=4)) == [4]
    assert allowed_sizes(config(num_workers=4, min_workers=2, max_workers=12)) == [2, 3, 4, 6, 12]
    several = config(num_workers=4, min_workers=1, max_workers=12)
    halves = with_values(several, {"train.accumulation": 4})
    assert allowed_sizes(halves) == [1, 2, 3, 6]


def test_the_largest_size_that_fits_is_taken() -> None:
    elastic = config(num_workers=4, min_workers=2, max_workers=12)
    assert [size_for(elastic, devices) for devices in (2, 5, 7, 100)] == [2, 4, 6, 12]
    with pytest.raises(UserError, match=r"needs at least 2 devices.*the cluster has 1"):
        size_for(elastic, 1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_workers": 5}, r"take one of \[1, 2, 3, 4, 6, 12\]"),
        ({"num_workers": 2, "min_workers": 3}, "not between cluster.min_workers=3"),
        ({"num_workers": 4, "max_workers": 2}, "cluster.max_workers=2"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_sizes(config(**values))


def run_with_devices(
    numbers: list[int], monkeypatch: pytest.MonkeyPatch, *, failures: int
) -> job._Run:
    """A run on a cluster that has so many devices when it is looked at, one look after the other;
    the last number stays."""
    monkeypatch.setattr(job, "wait_until_settled", lambda stopped: None)
    monkeypatch.setattr(job, "_WAIT_S", 0.01)
    monkeypatch.setattr(
        job, "devices", lambda config: numbers.pop(0) if len(numbers) > 1 else numbers[0]
    )
    run = job._Run(config(num_workers=4, hang_seconds=0.3), StopSignals())
    run.failures = failures
    return run


def test_lost_machines_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with_devices([3, 3, 4], monkeypatch, failures=1)._size() == 4


def test_but_not_at_the_start_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        run_with_devices([3, 4], monkeypatch, failures=0)._size()
    with pytest.raises(job.FaultError, match=r"after 0\.3 s of waiting.*the cluster has 3"):
        run_with_devices([3], monkeypatch, failures=1)._size()


def test_a_signal_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_devices([3], monkeypatch, failures=1)
    run.signals.received = 15
    assert run._size() is None


def test_too_few_devices_are_no_reason_to_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run_with_devices([0], monkeypatch, failures=0)._could_grow_from(4)()


def test_a_signal_ends_the_wait_for_silent_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts one that gives no answer for up to half a minute more."""
    task = SimpleNamespace(options=lambda **_: task, remote=lambda: "silent")
    silent = SimpleNamespace(
        nodes=lambda: [{"NodeID": "ab" * 28, "Alive": True}],
        remote=lambda **_: lambda function: task,
        wait=lambda asked, **_: ([], asked),
    )
    monkeypatch.setattr(devices, "ray", silent)
    monkeypatch.setattr(devices, "_SETTLE_S", 5)
    monkeypatch.setattr(devices.time, "sleep", lambda seconds: None)
    asked = iter([False, False, True])
    devices.wait_until_settled(lambda: next(asked))
    assert list(asked) == []
