"""Ranks that exchange numbers and values get the same ones, whatever each has."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.worker import refuse_together, storage_problem, version_problem, versions
from distgan import storage
from distgan.checkpoint import Fragment, committed_steps, load_newest
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.errors import UserError
from distgan.saving import Saver
from distgan.team import Alone, GroupTeam, from_first

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


def with_folders_of_their_own(team: GroupTeam, folder: str) -> Any:
    config = with_values(Config(), {"run.dir": f"{folder}/{min(team.rank, 1)}"})
    try:
        refuse_together(team, storage_problem(config, team))
    except UserError as error:
        return str(error), storage.list_names(f"{folder}/0")
    return None


def test_a_run_folder_that_not_all_ranks_share_is_refused_by_all(tmp_path: Path) -> None:
    for told, left in in_group(with_folders_of_their_own, tmp_path):
        assert "is not the same folder" in told and "shared disk" in told
        assert left == []


def with_other_versions(team: GroupTeam, folder: str) -> Any:
    wanted = versions() | ({"torch": "0.0"} if team.rank == 2 else {})
    try:
        refuse_together(team, version_problem(wanted))
    except UserError as error:
        return str(error)
    return None


def test_a_machine_with_other_versions_is_refused_by_all(tmp_path: Path) -> None:
    for told in in_group(with_other_versions, tmp_path):
        assert "instead of 0.0" in told and "torch" in told
