"""A checkpoint is one commit: whole or not there, and no damaged byte is ever used."""

import errno
import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from distgan import checkpoint as module
from distgan import storage
from distgan.checkpoint import (
    COMMITTED,
    DamagedCheckpointError,
    Fragment,
    checkpoint_folder,
    commit,
    committed_steps,
    load_newest,
    read_checkpoint,
    set_aside_after,
    whole,
    write_fragments,
)
from distgan.errors import DistganError, StorageError, UserError
from tests.checkpoints import STATE, assert_same, save, save_checkpoint, tensors, weights_of
from tests.damage import flip_bit


def test_round_trip(tmp_path: Path) -> None:
    folder = save(tmp_path, 840)
    assert folder == tmp_path / "checkpoints" / "step_00000840"
    loaded, problems = load_newest(str(tmp_path))
    assert loaded is not None and problems == []
    assert loaded.step == 840 and loaded.state == STATE | {"step": 840}
    assert Path(loaded.folder) == folder
    assert_same(loaded.tensors, tensors(840))


def test_an_empty_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(str(tmp_path)) == (None, [])
    assert load_newest(str(tmp_path / "nowhere")) == (None, [])


def pieces(seed: int, writers: int) -> list[list[Fragment]]:
    """Each tensor cut at uneven places, its pieces dealt to the writers; some get none of it."""
    dealt: list[list[Fragment]] = [[] for _ in range(writers)]
    for number, (name, tensor) in enumerate(tensors(seed).items()):
        flat = tensor.reshape(-1)
        cuts = sorted(random.Random(number).sample(range(len(flat) + 1), min(2, len(flat))))
        bounds = [0, *cuts[: writers - 1], len(flat)]
        for index, (start, end) in enumerate(itertools.pairwise(bounds)):
            writer = dealt[(number + index) % writers]
            writer.append(Fragment(name, tuple(tensor.shape), start, flat[start:end]))
    return dealt


@pytest.mark.parametrize("writers", [1, 3])
def test_any_number_of_writers_loads_equal(writers: int, tmp_path: Path) -> None:
    folder = checkpoint_folder(str(tmp_path), 5)
    parts = [
        write_fragments(folder, f"rank-{rank:05d}", fragments)
        for rank, fragments in enumerate(pieces(5, writers))
    ]
    assert load_newest(str(tmp_path)) == (None, [])  # not before the commit
    commit(folder, parts[::-1], STATE)
    loaded = read_checkpoint(folder, 5)
    assert_same(loaded.tensors, tensors(5))
    assert len(storage.list_names(folder)) == writers + 3


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_piece_is_damage(lost: int, tmp_path: Path) -> None:
    folder = checkpoint_folder(str(tmp_path), 5)
    flat = torch.arange(12.0)
    fragments = [Fragment("x", (3, 4), start, flat[start : start + 4]) for start in (0, 4, 8)]
    del fragments[lost]
    parts = [write_fragments(folder, f"rank-{k}", [f]) for k, f in enumerate(fragments)]
    commit(folder, parts, STATE)
    with pytest.raises(DamagedCheckpointError, match="piece of x"):
        read_checkpoint(folder, 5)


def test_empty_pieces_of_writers_that_own_nothing_are_allowed(tmp_path: Path) -> None:
    flat = torch.arange(4.0)
    cuts = [(0, 0), (0, 4), (4, 4)]
    for order in ([0, 1, 2], [2, 1, 0]):
        folder = checkpoint_folder(str(tmp_path / str(order[0])), 5)
        parts = [
            write_fragments(folder, f"rank-{k}", [Fragment("x", (4,), a, flat[a:b])])
            for k, (a, b) in enumerate(cuts)
        ]
        commit(folder, [parts[k] for k in order], STATE)
        assert torch.equal(read_checkpoint(folder, 5).tensors["x"], flat)


def test_folders_without_the_mark_are_not_there_and_get_cleared(tmp_path: Path) -> None:
    save(tmp_path, 10)
    half = save(tmp_path, 20)
    (half / COMMITTED).unlink()
    write_fragments(checkpoint_folder(str(tmp_path), 30), "rank-00000", whole(tensors()))
    (tmp_path / "checkpoints" / "step_notes").mkdir()
    (tmp_path / "checkpoints" / "other").mkdir()
    loaded, problems = load_newest(str(tmp_path))
    assert loaded is not None and loaded.step == 10 and problems == []
    assert committed_steps(str(tmp_path)) == [10]
    set_aside_after(str(tmp_path), 10)
    assert storage.list_names(str(tmp_path / "checkpoints")) == [
        "other", "step_00000010", "step_notes",
    ]  # fmt: skip
    assert load_newest(str(tmp_path))[0] is not None


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_every_flipped_byte_is_found_before_a_tensor_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, 3)
    assert len(files_of(folder)) == 4
    read_checkpoint(str(folder), 3)

    def never(data: bytes) -> Any:
        raise AssertionError("tensors were read from damaged bytes")

    monkeypatch.setattr(module, "load_safetensors", never)
    rng = random.Random(0)
    for file in files_of(folder):
        whole_bytes = file.read_bytes()
        places = [0, len(whole_bytes) - 1, *(rng.randrange(len(whole_bytes)) for _ in range(48))]
        for place in places:
            flip_bit(file, place, rng.randrange(8))
            with pytest.raises(DamagedCheckpointError):
                read_checkpoint(str(folder), 3)
            file.write_bytes(whole_bytes)


@pytest.mark.parametrize("harm", ["cut", "emptied", "removed", "lengthened"])
def test_cut_and_missing_files_are_found(harm: str, tmp_path: Path) -> None:
    save(tmp_path, 3)
    for file in files_of(save(tmp_path, 5)):
        kept = file.read_bytes()
        match harm:
            case "cut":
                file.write_bytes(kept[:-1])
            case "emptied":
                file.write_bytes(b"")
            case "lengthened":
                file.write_bytes(kept + b"x")
            case "removed":
                file.unlink()
        loaded, problems = load_newest(str(tmp_path))
        assert loaded is not None and loaded.step == 3
        # Without its mark a folder was never a checkpoint, so there is nothing to tell.
        assert len(problems) == (0 if (harm, file.name) == ("removed", COMMITTED) else 1)
        file.write_bytes(kept)
    loaded, problems = load_newest(str(tmp_path))
    assert loaded is not None and loaded.step == 5 and problems == []


def test_damage_falls_back_to_the_one_before_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "step_by_step"  # part of the path looks like a checkpoint's name
    for step in (1, 2, 3):
        save(run, step)
    flip_bit(weights_of(run / "checkpoints" / "step_00000003"), 300)
    flip_bit(run / "checkpoints" / "step_00000002" / "state.json", 5)
    loaded, problems = load_newest(str(run))
    assert loaded is not None and loaded.step == 1
    assert_same(loaded.tensors, tensors(1))
    assert ["step_00000003" in problems[0], "step_00000002" in problems[1]] == [True, True]
    set_aside_after(str(run), 1)
    assert committed_steps(str(run)) == [1]
    names = storage.list_names(str(run / "checkpoints"))
    assert names == ["damaged_00000002", "damaged_00000003", "step_00000001"]
    save(run, 2)
    assert committed_steps(str(run)) == [1, 2]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EIO, StorageError), (errno.ESTALE, StorageError),
                         (errno.EMFILE, StorageError), (errno.EACCES, UserError)],
)  # fmt: skip
@pytest.mark.parametrize("file", [COMMITTED, "manifest.json", "state.json", "rank-00000"])
def test_what_can_not_be_read_now_is_not_taken_for_damage(
    file: str, number: int, kind: type[DistganError], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Or a sound checkpoint would be set aside for a fault that passes."""
    save(tmp_path, 1)
    folder, read_bytes = save(tmp_path, 2), storage.read_bytes

    def read(path: str, **options: Any) -> bytes:
        if path.startswith(str(folder / file)):
            raise OSError(number, os.strerror(number), path)
        return read_bytes(path, **options)

    monkeypatch.setattr(storage, "read_bytes", read)
    with pytest.raises(kind, match=os.strerror(number)) as raised:
        load_newest(str(tmp_path))
    assert not isinstance(raised.value, DamagedCheckpointError)
    assert str(folder / file) in str(raised.value)


def test_a_run_with_nothing_but_damage_is_refused(tmp_path: Path) -> None:
    for step in (1, 2):
        flip_bit(save(tmp_path, step) / "manifest.json", 10)
    with pytest.raises(UserError, match="every checkpoint") as raised:
        load_newest(str(tmp_path))
    assert "step_00000001" in str(raised.value) and "step_00000002" in str(raised.value)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        save(tmp_path, step, keep=2)
    assert committed_steps(str(tmp_path)) == [20, 100]
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["step_00000020", "step_00000100"]


def test_a_committed_checkpoint_is_never_written_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(UserError, match="another process has committed"):
        save_checkpoint(str(tmp_path), 5, {"x": torch.ones(3)}, STATE, keep=2)
    loaded, _ = load_newest(str(tmp_path))
    assert loaded is not None
    assert_same(loaded.tensors, tensors(5))


def test_files_hold_no_pickle(tmp_path: Path) -> None:
    for file in files_of(save(tmp_path, 3)):
        data = file.read_bytes()
        assert not data.startswith((b"\x80", b"PK"))
        if file.suffix == ".safetensors":
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            assert set(header) - {"__metadata__"} == set(tensors())
        elif file.suffix == ".json":
            json.loads(data)
        else:
            assert file.name == COMMITTED and len(data.strip()) == 64
            int(data, 16)
