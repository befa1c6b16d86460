"""A checkpoint is one commit: whole or not there, and no damaged byte is ever used."""

import errno
import itertools
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distgan import checkpoint as module
from distgan import storage
from distgan.checkpoint import (
    COMMITTED,
    DamagedCheckpointError,
    Fragment,
    checkpoint_folder,
    commit,
    committed_steps,
    drop_old,
    load_newest,
    read_checkpoint,
    set_aside_after,
    whole,
    write_fragments,
)
from distgan.errors import UserError
from tests.checkpoints import save_checkpoint
from tests.damage import flip_bit

STATE: dict[str, Any] = {"step": 3, "seconds": 1.5, "stream": {"samples": 12}, "best": None}


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(4, 6, generator=generator)
    return {
        "generator/weight": matrix,
        "generator/low": matrix.bfloat16(),
        "generator/wide": matrix.double(),
        "generator/image": torch.randn(2, 3, 4, 4, generator=generator).to(
            memory_format=torch.channels_last
        ),
        "generator/turned": matrix.T,
        "generator.optimizer/weight/step": torch.tensor(7.0),
        "count": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "pixels": torch.arange(9, dtype=torch.uint8),
        "none": torch.zeros(0, 3),
    }


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape, name
        assert torch.equal(got[name], tensor), name


def save(run: Path, step: int, keep: int = 9) -> Path:
    return Path(save_checkpoint(str(run), step, tensors(step), STATE | {"step": step}, keep=keep))


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
    folder = checkpoint_folder(str(tmp_path), 5)
    flat = torch.arange(4.0)
    cuts = [(0, 0), (0, 4), (4, 4)]
    for order in ([0, 1, 2], [2, 1, 0]):
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
        places = [0, len(whole_bytes) - 1, *(rng.randrange(len(whole_bytes)) for _ in range(40))]
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
    for step in (1, 2, 3):
        save(tmp_path, step)
    flip_bit(tmp_path / "checkpoints" / "step_00000003" / "rank-00000.safetensors", 300)
    flip_bit(tmp_path / "checkpoints" / "step_00000002" / "state.json", 5)
    loaded, problems = load_newest(str(tmp_path))
    assert loaded is not None and loaded.step == 1
    assert_same(loaded.tensors, tensors(1))
    assert ["step_00000003" in problems[0], "step_00000002" in problems[1]] == [True, True]
    set_aside_after(str(tmp_path), 1)
    assert committed_steps(str(tmp_path)) == [1]
    names = storage.list_names(str(tmp_path / "checkpoints"))
    assert names == ["damaged_00000002", "damaged_00000003", "step_00000001"]
    save(tmp_path, 2)
    assert committed_steps(str(tmp_path)) == [1, 2]


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


def test_a_checkpoint_may_be_written_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    again = {"x": torch.ones(3)}
    save_checkpoint(str(tmp_path), 5, again, STATE, keep=2)
    loaded, _ = load_newest(str(tmp_path))
    assert loaded is not None
    assert_same(loaded.tensors, again)


WRITES = 4  # weights, state, manifest, mark


def fail_at_write(
    number: int, fail: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Runs `fail` in place of one write, counted from 1; the list collects the paths of all."""
    paths: list[str] = []
    write_bytes = storage.write_bytes

    def write(path: str, data: bytes) -> None:
        paths.append(path)
        if len(paths) == number:
            fail(path, data)
        else:
            write_bytes(path, data)

    monkeypatch.setattr(storage, "write_bytes", write)
    return paths


@pytest.mark.parametrize("failing", range(1, WRITES + 2))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_leaves_the_one_before(
    failing: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(path: str, data: bytes) -> None:
        raise OSError(number, "No space left on device")

    paths = fail_at_write(failing, full, monkeypatch)
    if failing > WRITES:
        save(tmp_path, 2)
        assert len(paths) == WRITES and committed_steps(str(tmp_path)) == [1, 2]
        return
    with pytest.raises(UserError, match="No space left") as raised:
        save(tmp_path, 2)
    assert "step_00000002" in str(raised.value)
    assert storage.list_names(str(tmp_path / "checkpoints")) == ["step_00000001"]
    loaded, problems = load_newest(str(tmp_path))
    assert loaded is not None and loaded.step == 1 and problems == []


class Killed(BaseException):
    """Nothing runs after it."""


def save_in_two_pieces(run: Path, step: int) -> None:
    """As two ranks do, one after the other; two committed checkpoints are kept."""
    folder = checkpoint_folder(str(run), step)
    pieces = [[Fragment("x", (10,), start, torch.full((5,), float(step)))] for start in (0, 5)]
    parts = [write_fragments(folder, f"rank-{n:05d}", piece) for n, piece in enumerate(pieces)]
    commit(folder, parts, STATE | {"step": step})
    drop_old(str(run), keep=2)


POINTS = [("write", number, share) for number in range(1, 6) for share in range(11)]
POINTS += [("removal", number, 0) for number in range(1, 4)]


@pytest.mark.parametrize("point", POINTS, ids=lambda p: "-".join(map(str, p)))
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(
    point: tuple[str, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """58 points: after 0 to 10 tenths of each file's bytes, and within the removal of old ones."""
    for step in (1, 2):
        save_in_two_pieces(tmp_path, step)
    kind, number, tenths = point

    def die(path: str, data: bytes) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.partial")
        beside.write_bytes(data[: len(data) * tenths // 10])
        raise Killed

    if kind == "write":
        fail_at_write(number, die, monkeypatch)
    else:
        removals = iter(range(1, 99))
        unlink = os.unlink

        def dying_unlink(*arguments: Any, **options: Any) -> None:
            if next(removals) == number:
                raise Killed
            unlink(*arguments, **options)

        monkeypatch.setattr(os, "unlink", dying_unlink)
    with pytest.raises(Killed):
        save_in_two_pieces(tmp_path, 3)
    monkeypatch.undo()
    loaded, problems = load_newest(str(tmp_path))
    newest = 2 if kind == "write" else 3
    assert loaded is not None and loaded.step == newest and problems == []
    assert loaded.tensors["x"].eq(newest).all()
    set_aside_after(str(tmp_path), newest)
    save_in_two_pieces(tmp_path, 4)
    assert committed_steps(str(tmp_path)) == [newest, 4]


def test_a_failed_write_leaves_neither_file_nor_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def failing(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", failing)
    with pytest.raises(OSError, match="No space"):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old" and storage.list_names(str(tmp_path)) == ["file"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode != 0:
        pytest.skip(f"no right to mount a small file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    def write(step: int) -> None:
        values = {"x": torch.full((25_000,), float(step))}  # 100 KB
        save_checkpoint(str(small_disk), step, values, STATE, keep=2)

    write(1)
    write(2)
    with pytest.raises(UserError, match="No space left"):
        write(3)
    assert committed_steps(str(small_disk)) == [1, 2]
    loaded, problems = load_newest(str(small_disk))
    assert loaded is not None and problems == []
    assert loaded.tensors["x"].eq(2).all()
    assert storage.list_names(str(small_disk / "checkpoints")) == [
        "step_00000001", "step_00000002",
    ]  # fmt: skip


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
