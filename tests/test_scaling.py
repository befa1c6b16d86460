"""How many workers a run takes: batch and lanes divide evenly, and lost machines are waited for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster import devices, job
from cluster.board import RankFacts, Snapshot
from cluster.devices import places, with_device
from cluster.scaling import Places, allowed_sizes, check_sizes, size_for, too_few
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.errors import UserError
from distgan.run_folder import StopSignals, save_config


def config(**cluster: Any) -> Config:
    values = {"train.batch_size": 24, "data.lanes": 12}
    return with_values(Config(), values | {f"cluster.{k}": v for k, v in cluster.items()})


def test_sizes_divide_batch_and_lanes_within_the_bounds() -> None:
    assert allowed_sizes(config(num_workers=4)) == [4]
    assert allowed_sizes(config(num_workers=4, min_workers=2, max_workers=12)) == [2, 3, 4, 6, 12]
    several = config(num_workers=4, min_workers=1, max_workers=12)
    halves = with_values(several, {"train.accumulation": 4})
    assert allowed_sizes(halves) == [1, 2, 3, 6]
    as_many_as_there_are = config(num_workers=4, min_workers=4, max_workers=10**12)
    assert allowed_sizes(as_many_as_there_are) == [4, 6, 12]


def test_the_largest_size_that_fits_is_taken() -> None:
    elastic = config(num_workers=4, min_workers=2, max_workers=12)
    assert [size_for(elastic, places) for places in (1, 2, 5, 7, 100)] == [0, 2, 4, 6, 12]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_workers": 5}, r"take one of \[1, 2, 3, 4, 6, 12\]"),
        ({"num_workers": 2, "min_workers": 3}, "not between cluster.min_workers=3"),
        ({"num_workers": 4, "max_workers": 2}, "cluster.max_workers=2"),
        ({"num_workers": 4, "cpus_per_worker": 0.12345}, "cluster.cpus_per_worker=0.12345"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_sizes(config(**values))


def run_with_places(
    looks: list[Places], monkeypatch: pytest.MonkeyPatch, *, started: bool = False, **cluster: int
) -> job._Run:
    """A run on a cluster that has these places when it is looked at, one look after the other; the
    last one stays."""
    monkeypatch.setattr(job, "wait_until_settled", lambda stopped: None)
    monkeypatch.setattr(job, "_WAIT_S", 0.01)
    monkeypatch.setattr(job, "_RELEASE_S", 0.1)
    monkeypatch.setattr(job, "places", lambda _: looks.pop(0) if len(looks) > 1 else looks[0])
    run = job._Run(config(**{"num_workers": 4, "hang_seconds": 0.3, **cluster}), StopSignals())
    run.started, run.failures = started, int(started)
    return run


def of(total: int, free: int) -> Places:
    return Places(total=total, free=free)


def test_lost_machines_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [of(3, 3), of(3, 3), of(4, 4)]
    assert run_with_places(looks, monkeypatch, started=True)._size() == 4


def test_but_not_at_the_start_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"needs at least 4 devices.*the cluster has 3, 3 of them"):
        run_with_places([of(3, 3), of(4, 4)], monkeypatch)._size()
    with pytest.raises(job.FaultError, match=r"after 0\.3 s of waiting.*the cluster has 3"):
        run_with_places([of(3, 3)], monkeypatch, started=True)._size()


def test_places_that_others_hold_are_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start a smaller number of workers is taken, or none: with the reason."""
    assert run_with_places([of(8, 3)], monkeypatch, min_workers=1)._size() == 3
    with pytest.raises(UserError, match="has 8, 3 of them free; wait until what holds the others"):
        run_with_places([of(8, 3)], monkeypatch)._size()


def test_places_of_workers_that_ended_just_now_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [of(4, 0), of(4, 3), of(4, 4)]
    assert run_with_places(looks, monkeypatch, started=True, min_workers=1)._size() == 4


def test_a_signal_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_places([of(3, 3)], monkeypatch, started=True)
    run.signals.received = 15
    assert run._size() is None


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


class _Attempt:
    """Of so many workers, of which some have begun."""

    why = ""

    def __init__(self, size: int, begun: int) -> None:
        facts = RankFacts(pid=1, node_id="", host="", stacks="")
        self.size, self.last = size, Snapshot(0.0, dict.fromkeys(range(begun), facts), [], None)


@pytest.mark.parametrize(
    ("begun", "there", "grows"),
    [
        (4, of(8, 4), True),
        (4, of(8, 1), False),  # 5 workers can't share the batch, and others hold the rest
        (4, of(8, 0), False),
        (4, of(4, 0), False),
        (4, of(0, 0), False),
        (3, of(8, 5), False),  # one place that looks free is its own
    ],
)
def test_a_run_grows_into_what_is_free_alone(
    begun: int, there: Places, grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with_places([there], monkeypatch, max_workers=12)
    attempt: Any = _Attempt(4, begun)
    assert run._could_grow_from(attempt)() is grows


def test_more_workers_than_asked_for_start_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to `cluster.max_workers`: at the start, and again when the cluster has grown; each time
    the run goes on until its workers have left a checkpoint and ended."""
    looks = [of(5, 5), of(12, 7), of(12, 8), of(12, 12), of(12, 0)]
    run = run_with_places(looks, monkeypatch, num_workers=2, max_workers=12)
    run.config = with_values(run.config, {"run.dir": str(tmp_path)})
    run.show_progress = False
    sizes, grown = list[int](), list[bool]()

    class Growing(_Attempt):
        def __init__(self, config: Config, size: int, listener: object, *, seen: bool) -> None:
            super().__init__(size, begun=size)
            sizes.append(size)

        def watch(self, signals: object, could_grow: Callable[[], bool], bar: object) -> None:
            grown.append(could_grow())
            signal = job.RESIZE if grown[-1] else None
            outcome = {"step": 7, "reason": "", "signal": signal}
            self.last = replace(self.last, outcome=outcome)

    monkeypatch.setattr(job, "Attempt", Growing)
    assert run.to_its_end().step == 7
    assert (sizes, grown) == ([4, 12], [True, False])


def test_a_later_attempt_keeps_what_the_first_has_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured again, on a machine that is busy otherwise, `auto` could come to another answer."""
    run = run_with_places([of(4, 4)], monkeypatch)
    run.config = with_values(run.config, {"run.dir": str(tmp_path), "train.precision": "auto"})
    run.show_progress = False
    given = list[tuple[str, bool]]()

    class Failing(_Attempt):
        def __init__(self, config: Config, size: int, listener: object, *, seen: bool) -> None:
            super().__init__(size, begun=size)
            self.config = config
            given.append((config.train.precision, seen))

        def watch(self, signals: object, could_grow: object, bar: object) -> Exception | None:
            if len(given) == 1:
                return RuntimeError("lost before its trainer was there")
            if len(given) == 2:
                save_config(with_values(self.config, {"train.precision": "bf16"}))
                for facts in self.last.ranks.values():
                    facts.step = 0
                return RuntimeError("lost after it")
            self.last.outcome = {"step": 7, "reason": ""}
            return None

    monkeypatch.setattr(job, "Attempt", Failing)
    assert run.to_its_end().step == 7
    assert given == [("auto", False), ("auto", False), ("bf16", True)]


@pytest.mark.parametrize(
    ("machines", "cpus", "total", "free"),
    [
        ([({"CPU": 3}, {"CPU": 3})] * 2, 2, 2, 2),  # a worker is not split between machines
        ([({"CPU": 4}, {"CPU": 1})] * 2, 2, 4, 0),
        ([({"CPU": 0.3}, {"CPU": 0.3})], 0.1, 3, 3),
        ([({"CPU": 2}, {}), ({"CPU": 2}, {"CPU": 2, "memory": 1})], 1, 4, 2),
        # A GPU is of no use where no CPUs are left, nor CPUs without a GPU.
        ([({"CPU": 2, "GPU": 4}, {"CPU": 1, "GPU": 3})], 1, 2, 1),
        ([({"CPU": 9, "GPU": 1}, {"CPU": 9, "GPU": 1}), ({"CPU": 9}, {"CPU": 9})], 1, 1, 1),
        ([({"CPU": 9, "GPU": 2}, {"CPU": 9})], 1, 2, 0),  # busy GPUs are no reason to use CPUs
    ],
)
def test_places_are_counted_machine_by_machine(
    machines: list[tuple[dict[str, float], dict[str, float]]], cpus: float, total: int, free: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`machines`: what each has, and what of it is free."""
    nodes = [
        {"NodeID": str(i), "Alive": True, "Resources": there}
        for i, (there, _) in enumerate(machines)
    ]
    lost = {"NodeID": "lost", "Alive": False, "Resources": {"CPU": 100, "GPU": 100}}
    sums = {n: sum(there.get(n, 0) for there, _ in machines) for n in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, lost])
    monkeypatch.setattr(ray, "cluster_resources", lambda: sums)
    monkeypatch.setattr(
        devices, "available_resources_per_node",
        lambda: {str(i): left for i, (_, left) in enumerate(machines)} | {"lost": {"CPU": 100}},
    )  # fmt: skip
    monkeypatch.setattr(devices, "leaving", frozenset)
    assert places(config(cpus_per_worker=cpus, num_workers=1)) == of(total, free)
    monkeypatch.setattr(devices, "leaving", lambda: {node["NodeID"] for node in nodes})
    assert places(config(cpus_per_worker=cpus, num_workers=1)) == of(0, 0)


def test_the_device_is_decided_once_for_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose GPUs are lost must not go on with the CPUs that are left, nor one on CPUs wait
    for a GPU that came and went."""
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "0", "Alive": True,
                                                "Resources": {"CPU": 8}}])  # fmt: skip
    monkeypatch.setattr(devices, "available_resources_per_node", lambda: {"0": {"CPU": 8}})
    monkeypatch.setattr(devices, "leaving", frozenset)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8, "GPU": 1})
    on_gpus = with_device(config(num_workers=1))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8})
    on_cpus = with_device(config(num_workers=1))
    assert (on_gpus.train.device, on_cpus.train.device) == ("cuda", "cpu")
    assert places(on_gpus) == of(0, 0)
    assert places(on_cpus) == of(8, 8)
    assert "a GPU, by train.device=cuda" in str(too_few(on_gpus, of(0, 0)))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8, "GPU": 1})
    assert places(on_cpus) == of(8, 8)
