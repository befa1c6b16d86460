"""Ranks that exchange numbers and values get the same ones, whatever each has."""

import functools
import multiprocessing
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import cluster
import distgan
from cluster import agreement
from cluster.agreement import check_data, check_storage, check_versions, versions
from distgan import storage, trainer
from distgan.checkpoint import (
    Fragment,
    checkpoint_folder,
    committed_steps,
    load_newest,
    whole,
)
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.errors import DistganError, DivergedError, StorageError, UserError
from distgan.resuming import _newest_for_all as newest_for_all
from distgan.run_folder import diverged_step, mark_diverged
from distgan.saving import Saver
from distgan.team import Alone, GroupTeam, failing_together, from_first
from tests.checkpoints import weights_of
from tests.tiny import REPOSITORY

RANKS = 3


def in_group(work: Callable[[GroupTeam, str], Any], folder: Path) -> list[Any]:
    """Runs `work` in processes of one gloo group and returns their results by rank."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_member, args=(work, str(folder), rank, results), daemon=True)
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    by_rank = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return [by_rank[rank] for rank in range(RANKS)]


def _member(work: Any, folder: str, rank: int, results: Any) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS
    )
    results.put((rank, work(GroupTeam(torch.device("cpu")), folder)))
    dist.destroy_process_group()


def exchange(team: GroupTeam, folder: str) -> Any:
    totals = team.totals({"b": torch.tensor(10.0**team.rank), "a": torch.tensor(0.1)})
    gathered = team.gather({"rank": team.rank, "text": "ä" * 100 * team.rank, "none": None})
    return (
        {name: total.item() for name, total in totals.items()},
        gathered,
        from_first(team, ["rank", team.rank]),
    )


def test_sums_and_values_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    results = in_group(exchange, tmp_path)
    assert results[0] == results[1] == results[2]
    totals, gathered, first = results[0]
    tenth = torch.tensor(0.1).double().item()
    assert totals == {"a": 3 * tenth, "b": 111.0}
    assert gathered == [
        {"rank": rank, "text": "ä" * 100 * rank, "none": None} for rank in range(RANKS)
    ]
    assert first == ["rank", 0]


def test_alone_there_is_nothing_to_exchange() -> None:
    values = {"a": torch.tensor(0.1)}
    assert Alone().totals(values)["a"] is values["a"]
    assert Alone().gather({"x": 1}) == [{"x": 1}]


def save_in_pieces(team: GroupTeam, folder: str) -> Any:
    run = f"{folder}/run"
    saver = Saver(run, 2, team)
    for step in (1, 2, 3):
        own = torch.full((team.rank + 1,), float(10 * step + team.rank))
        start = sum(range(1, team.rank + 1))
        saver.begin(step, [Fragment("x", (6,), start, own)], {"step": step})
        before = committed_steps(run)
    saver.finish()
    checkpoint, _ = load_newest(run)
    assert checkpoint is not None
    return before, committed_steps(run), checkpoint.tensors["x"].tolist()


def test_the_pieces_of_all_ranks_are_one_commit(tmp_path: Path) -> None:
    for before, after, values in in_group(save_in_pieces, tmp_path):
        assert before == [1, 2] and after == [2, 3]
        assert values == [30, 31, 31, 32, 32, 32]


def resume_from_damage(team: GroupTeam, folder: str) -> Any:
    run, told = f"{folder}/run", []
    saver = Saver(run, 2, team)
    saver.begin(1, [Fragment("x", (RANKS,), team.rank, torch.ones(1))], {"step": 1})
    saver.finish()
    file = weights_of(checkpoint_folder(run, 1), rank=1)
    sound, damaged = file.read_bytes(), file.read_bytes()[:-1]
    for reader in (1, 0):
        seen = damaged if team.rank == reader else sound
        with mock.patch.object(storage, "read_bytes", reading_instead(str(file), seen)):
            told.append(told_by(lambda: newest_for_all(run, team)))
    return told


def reading_instead(path: str, data: bytes) -> Callable[..., bytes]:
    read = storage.read_bytes
    return lambda other, **options: data if other == path else read(other, **options)


def test_damage_that_one_rank_alone_reads_all_ranks_raise(tmp_path: Path) -> None:
    for by_one, by_the_first in in_group(resume_from_damage, tmp_path):
        assert by_one[0] == by_the_first[0] == 2
        assert by_one[1].startswith(f"rank 1 on {platform.node()}: {tmp_path}/run")
        assert "while rank 0 found it whole" in by_one[1]
        assert by_the_first[1].startswith(f"rank 0 on {platform.node()}: every checkpoint in")


def resume_from_folders_of_their_own(team: GroupTeam, folder: str) -> Any:
    own = f"{folder}/{team.rank}"
    saver = Saver(own, 2, Alone())
    saver.begin(1, whole({"x": torch.full((2,), float(min(team.rank, 1)))}), {"step": 1})
    saver.finish()
    return told_by(lambda: newest_for_all(own, team))


def test_ranks_that_see_another_checkpoint_of_the_same_step_are_refused_by_all(
    tmp_path: Path,
) -> None:
    """As with a local `run.init_from` that is not the same run on every machine."""
    for code, message in in_group(resume_from_folders_of_their_own, tmp_path):
        assert code == 2 and message.startswith(f"rank 1 on {platform.node()}: {tmp_path}/1")
        assert "is another checkpoint, while rank 0 found it whole" in message


def with_folders_of_their_own(team: GroupTeam, folder: str) -> Any:
    config = with_values(Config(), {"run.dir": f"{folder}/{min(team.rank, 1)}"})
    return told_by(lambda: check_storage(config, team)), storage.list_names(f"{folder}/0")


def test_a_run_folder_that_not_all_ranks_share_is_refused_by_all(tmp_path: Path) -> None:
    for told, left in in_group(with_folders_of_their_own, tmp_path):
        assert told[0] == 2
        assert told[1].startswith(f"rank 1 on {platform.node()}: run.dir=")
        assert "not the same folder" in told[1] and "shared disk" in told[1]
        assert left == []


def with_data_of_their_own(team: GroupTeam, folder: str) -> Any:
    config = with_values(Config(), {"data.shards": "/data/a"})
    digests = "0" * 64, str(min(team.rank, 1)) * 64
    return [told_by(functools.partial(check_data, config, digest, team)) for digest in digests]


def test_data_that_are_not_the_same_for_all_ranks_are_refused_by_all(tmp_path: Path) -> None:
    for same, another in in_group(with_data_of_their_own, tmp_path):
        assert same is None and another[0] == 2
        assert "data.shards=/data/a: rank 1, 2 sees another data set there" in another[1]


def test_the_digest_of_the_code_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout on another machine has the same version, whatever was changed in it."""
    for package in ("distgan", "cluster"):
        shutil.copytree(REPOSITORY / package, tmp_path / package)
    own = versions()
    (tmp_path / "distgan" / ".#trainer.py").symlink_to("nobody@nowhere.1")  # an editor's
    monkeypatch.setattr(agreement, "_digest_of_code", agreement._digest_of_code.__wrapped__)
    monkeypatch.setattr(distgan, "__file__", str(tmp_path / "distgan" / "__init__.py"))
    monkeypatch.setattr(cluster, "__file__", str(tmp_path / "cluster" / "__init__.py"))
    assert versions() == own
    changed = tmp_path / "distgan" / "losses.py"
    changed.write_text(changed.read_text().replace("softplus", "sigmoid"))
    with pytest.raises(UserError, match=r"distgan's code [0-9a-f]{12} instead of"):
        check_versions(own)


UNREACHABLE = [
    (0, "write_bytes", PermissionError(13, "Permission denied", "/runs/a")),
    (1, "exists", OSError(116, "Stale file handle", "/runs/a")),
    (2, "read_bytes", StorageError("can't read s3://bucket/runs/a for 300 s")),
]
"""A rank, which call of storage fails there, and how."""


def with_storage_that_fails(team: GroupTeam, folder: str) -> Any:
    def fail(error: Exception, *arguments: Any, **options: Any) -> Any:
        raise error

    config = with_values(Config(), {"run.dir": f"{folder}/run"})
    told: tuple[list[Any], list[Any]] = ([], [])
    for rank, call, error in UNREACHABLE:
        own = functools.partial(fail, error) if team.rank == rank else getattr(storage, call)
        with mock.patch.object(storage, call, own):
            told[0].append(told_by(lambda: check_storage(config, team)))
            told[1].append(told_by(lambda: check_storage(config, team, seen=True)))
    return *told, storage.list_names(f"{folder}/run")


def test_a_run_folder_that_one_rank_can_not_reach_is_refused_by_all(tmp_path: Path) -> None:
    """But for what may pass, once the ranks of an earlier attempt have reached it."""
    for first, later, left in in_group(with_storage_that_fails, tmp_path):
        assert [code for code, _ in first] == [2, 2, 2]
        assert [code for code, _ in later] == [2, 1, 1]
        for told in (first, later):
            for (code, message), (rank, _, error) in zip(told, UNREACHABLE, strict=True):
                assert message.startswith(f"rank {rank} on {platform.node()}: run.dir={tmp_path}")
                assert str(error) in message and ("shared disk" in message) is (code == 2)
        assert left == []


def with_a_slow_marker(team: GroupTeam, folder: str) -> Any:
    config = with_values(Config(), {"run.dir": folder})

    def mark(run_dir: str, step: int, reason: str) -> None:
        time.sleep(2)
        mark_diverged(run_dir, step, reason)

    diverging: Any = mock.Mock(config=config, team=team, step=3)
    diverging._train_and_roll_back.side_effect = DivergedError("the loss is nan")
    with (
        mock.patch.multiple(trainer, resume=mock.Mock(), save_config=mock.Mock()),
        mock.patch.object(trainer, "mark_diverged", mark),
    ):
        told = told_by(lambda: trainer.Trainer.run(diverging, mock.Mock()))
    return told, diverged_step(folder)


def test_no_rank_ends_before_the_mark_of_divergence_is_there(tmp_path: Path) -> None:
    """As Ray ends the others with the first, and a rerun would train on."""
    results = in_group(with_a_slow_marker, tmp_path)
    assert results == [((3, "the loss is nan"), 3)] * RANKS


def with_problems_of_some(team: GroupTeam, folder: str) -> Any:
    def check() -> None:
        with failing_together(team):
            check_versions(versions() | ({"torch": "0.0"} if team.rank == 2 else {}))

    def fail() -> None:
        with failing_together(team):
            pass
        with failing_together(team):
            if team.rank:
                raise DivergedError("the first one") if team.rank == 1 else UserError("another")

    return told_by(check), told_by(fail)


def test_what_is_wrong_on_one_rank_all_ranks_raise(tmp_path: Path) -> None:
    for (code, versions_message), first in in_group(with_problems_of_some, tmp_path):
        assert code == 2 and versions_message.startswith(f"rank 2 on {platform.node()}")
        assert "torch" in versions_message and "instead of 0.0" in versions_message
        assert first == (3, f"rank 1 on {platform.node()}: the first one")


def test_alone_an_error_stays_as_it_is() -> None:
    error = UserError("mine")
    with pytest.raises(UserError) as raised, failing_together(Alone()):
        raise error
    assert raised.value is error


def told_by(work: Callable[[], Any]) -> tuple[int, str] | None:
    """Exit code and message of the error that it raises."""
    try:
        work()
    except DistganError as error:
        return error.exit_code, str(error)
    return None
