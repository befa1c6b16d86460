"""The stream: every clip once an epoch, in an order that nothing but seed and epoch decides."""

import itertools
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from distgan.config import DataConfig
from distgan.data import clip_reader
from distgan.data import stream as stream_module
from distgan.data.lane_workers import LanePart
from distgan.data.manifest import Manifest
from distgan.data.order import EpochOrder
from distgan.data.shard_reader import Shard
from distgan.data.stream import ClipBatch, ClipStream
from distgan.errors import UserError
from tests.numbered_clips import SIZE, STORED, make_data, open_stream, write_data_manifest


def numbers(stream: ClipStream, batches: int, start: int = 0) -> list[int]:
    taken = itertools.islice(stream.batches(start), batches)
    return [int(clip[0, 0, 0, 0]) for batch in taken for clip in batch.clips]


SETS = [
    ([5, 5, 5, 5], 4, 4),
    ([7, 3, 1, 9, 4], 4, 8),  # nothing divides
    ([6], 4, 4),  # fewer shards than lanes
    ([2, 3], 8, 8),  # fewer clips than lanes
    ([3], 4, 12),  # a batch is several epochs
    ([1] * 13, 3, 6),
    ([10, 11], 1, 5),
]


@pytest.mark.parametrize(("sizes", "lanes", "batch"), SETS, ids=str)
def test_each_clip_comes_exactly_once_an_epoch(
    sizes: list[int], lanes: int, batch: int, tmp_path: Path
) -> None:
    stream = open_stream(make_data(tmp_path, sizes), lanes=lanes, batch=batch)
    total = sum(sizes)
    assert stream.samples_an_epoch == total
    delivered = numbers(stream, -(-3 * total // batch))
    for epoch in range(3):
        assert sorted(delivered[epoch * total : (epoch + 1) * total]) == list(range(total))


def test_workers_leave_what_they_handed_over_alone_until_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have all the time that they need to write further parts before the copy is made."""
    folder = make_data(tmp_path, [5] * 20)
    joined = stream_module._joined

    def late(parts: Sequence[LanePart], pin_memory: bool) -> ClipBatch:
        time.sleep(0.1)
        return joined(parts, pin_memory)

    monkeypatch.setattr(stream_module, "_joined", late)
    delivered = numbers(open_stream(folder, workers=2), 25)
    assert delivered == numbers(open_stream(folder), 25)


@pytest.mark.parametrize(
    ("sizes", "lanes"), [([40, 41, 39], 8), ([3] * 50, 7), ([1], 8), ([200], 16)]
)
def test_the_order_is_a_permutation_in_every_epoch(sizes: list[int], lanes: int) -> None:
    order, total = EpochOrder(sizes, seed=3, lanes=lanes), sum(sizes)
    everything = {(shard, index) for shard, size in enumerate(sizes) for index in range(size)}
    for epoch in (0, 1, 2, 7):
        samples = [order.sample(epoch * total + within) for within in range(total)]
        assert {number for number, _ in samples} == {epoch}
        assert {sample for _, sample in samples} == everything
    # Whatever was asked before, in whatever direction, the answer stays.
    fresh = EpochOrder(sizes, seed=3, lanes=lanes)
    for position in (5 * total, 0, total, 5 * total + total // 2):
        assert fresh.sample(position) == order.sample(position)


@pytest.mark.parametrize(("sizes", "lanes", "batch"), SETS[:5], ids=str)
def test_a_start_anywhere_is_the_tail_of_the_whole(
    sizes: list[int], lanes: int, batch: int, tmp_path: Path
) -> None:
    folder = make_data(tmp_path, sizes)
    whole = [batch.clips for batch in itertools.islice(
        open_stream(folder, lanes=lanes, batch=batch, frames=3).batches(), 12)]  # fmt: skip
    for skipped in (1, 2, 5, 9):
        late = open_stream(folder, lanes=lanes, batch=batch, frames=3).batches(skipped * batch)
        for expected, got in zip(whole[skipped:], late, strict=False):
            assert torch.equal(expected, got.clips)


def test_the_order_depends_on_seed_and_epoch(tmp_path: Path) -> None:
    folder = make_data(tmp_path, [12, 12])
    first = numbers(open_stream(folder), 12)
    assert first == numbers(open_stream(folder), 12)
    assert first != numbers(open_stream(folder, seed=1), 12)
    assert first[:24] != first[24:]
    assert first[:24] != list(range(24))


@pytest.mark.parametrize("sizes", [[20], [1] * 20], ids=["within a shard", "of shards"])
def test_both_shuffles_change_with_seed_and_epoch(sizes: list[int]) -> None:
    def epoch_order(seed: int, epoch: int) -> list[tuple[int, int]]:
        order = EpochOrder(sizes, seed=seed, lanes=4)
        return [order.sample(epoch * 20 + within)[1] for within in range(20)]

    orders = [epoch_order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(a != b for a, b in itertools.combinations([sorted(orders[0]), *orders], 2))


def test_the_batch_size_does_not_change_the_order(tmp_path: Path) -> None:
    folder = make_data(tmp_path, [7, 3, 1, 9, 4])
    assert numbers(open_stream(folder, batch=4), 12) == numbers(open_stream(folder, batch=8), 6)


def test_clips_of_a_lane_come_from_few_shards_at_a_time(tmp_path: Path) -> None:
    """Each lane takes one contiguous piece of the shuffled row of shards."""
    order = EpochOrder([10] * 8, seed=0, lanes=4)
    for lane in range(4):
        shards = [order.sample(position)[1][0] for position in range(lane, 80, 4)]
        runs = [shard for shard, _ in itertools.groupby(shards)]
        assert len(runs) == len(set(runs)) <= 3


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int, tmp_path: Path) -> None:
    folder = make_data(tmp_path, [7, 3, 1, 9, 4])
    options = {"lanes": 3, "batch": 6, "frames": 3}
    alone = open_stream(folder, **options).batches(6)  # type: ignore[arg-type]
    shared = open_stream(folder, workers=workers, **options).batches(6)  # type: ignore[arg-type]
    for expected, got in itertools.islice(zip(alone, shared, strict=False), 9):
        assert torch.equal(expected.clips, got.clips)
        assert expected.places == got.places == tuple(range(6))
        assert got.clips.shape == (6, 3, 3, SIZE, SIZE) and got.clips.dtype == torch.uint8


LEAKING_PROGRAM = """
import builtins, sys
from distgan.config import DataConfig
from distgan.data.stream import ClipBatch, ClipStream

if __name__ == "__main__":
    config = DataConfig(resolution=8, clip_frames=2, lanes=4, num_workers=2)
    builtins.batches = ClipStream(sys.argv[1], config, seed=0, batch_size=4).batches()
    next(builtins.batches)
    print("read a batch")
"""


def test_a_program_that_never_closes_a_stream_still_ends(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LEAKING_PROGRAM)
    command = [sys.executable, str(program), make_data(tmp_path, [12, 12])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (ended.returncode, ended.stdout) == (0, "read a batch\n"), ended.stderr


@pytest.mark.parametrize("failing", [False, True])
def test_a_stream_that_is_closed_leaves_no_process(failing: bool, tmp_path: Path) -> None:
    folder = make_data(tmp_path, [12, 12])
    before = set(multiprocessing.active_children())
    batches = open_stream(folder, workers=2).batches()
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    if failing:
        with pytest.raises(KeyError):
            batches.throw(KeyError())
    batches.close()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_frames_follow_each_other_at_the_stride(stride: int, tmp_path: Path) -> None:
    stream = open_stream(make_data(tmp_path, [12, 12]), frames=3, stride=stride)
    starts = set()
    for batch in itertools.islice(stream.batches(), 30):
        frames = batch.clips[:, 1, :, 0, 0].long()
        assert (frames.diff(dim=1) == stride).all()
        assert (batch.clips[:, 0] == batch.clips[:, 0, :1, :1, :1]).all()  # one clip, all places
        starts |= set(frames[:, 0].tolist())
    assert starts == set(range(STORED - 2 * stride))  # every start that fits


def test_a_random_stride_is_drawn_for_each_clip(tmp_path: Path) -> None:
    stream = open_stream(make_data(tmp_path, [12]), frames=3, stride=3, random_stride=True)
    strides: Counter[int] = Counter()
    for batch in itertools.islice(stream.batches(), 60):
        steps = batch.clips[:, 1, :, 0, 0].long().diff(dim=1)
        assert (steps == steps[:, :1]).all()
        strides.update(steps[:, 0].tolist())
    assert set(strides) == {1, 2, 3} and min(strides.values()) > 50


def test_starts_change_from_epoch_to_epoch(tmp_path: Path) -> None:
    stream = open_stream(make_data(tmp_path, [12]))
    starts: dict[int, set[int]] = {}
    for batch in itertools.islice(stream.batches(), 24):
        for clip in batch.clips:
            starts.setdefault(int(clip[0, 0, 0, 0]), set()).add(int(clip[1, 0, 0, 0]))
    assert len(starts) == 12 and min(len(seen) for seen in starts.values()) > 1


def test_batches_are_the_places_in_order(tmp_path: Path) -> None:
    stream = open_stream(make_data(tmp_path, [5, 6]), lanes=2, batch=6)
    for batch in itertools.islice(stream.batches(), 4):
        assert batch.places == tuple(range(6))
        assert batch.clips.permute(0, 2, 3, 4, 1).is_contiguous()


def test_a_late_start_reads_only_shards_near_its_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_data(tmp_path, [4] * 30)
    reads: list[str] = []
    read_shard = clip_reader.read_shard

    def counting(folder: str, manifest: Manifest, index: int, cache: None) -> Shard:
        reads.append(manifest.shards[index].name)
        return read_shard(folder, manifest, index, cache)

    monkeypatch.setattr(clip_reader, "read_shard", counting)
    late = open_stream(folder, lanes=2, batch=2).batches(2 * 50)
    assert reads == []  # nothing before it is needed
    next(late)
    assert len(reads) <= 2
    for _ in range(5):
        next(late)
    ahead = DataConfig().shards_in_flight
    assert len(reads) <= 6 + ahead
    # Over a whole epoch hardly any shard is read twice: two lanes may meet within one.
    reads.clear()
    numbers(open_stream(folder, lanes=2, batch=2), 60)
    assert set(reads) == {f"shard-{k:06d}.tar" for k in range(30)} and len(reads) <= 32 + ahead


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", [4])
    with pytest.raises(UserError, match=r"data\.resolution=16") as raised:
        ClipStream(folder, DataConfig(resolution=16), seed=0, batch_size=8)
    assert "data.resolution=8" in str(raised.value)
    with pytest.raises(UserError, match=r"needs 8.*prepare\.stored_frames=8"):
        open_stream(folder, frames=8)
    with pytest.raises(UserError, match=r"needs 9"):
        open_stream(folder, frames=5, stride=2)
    open_stream(folder, frames=4, stride=2)
    with pytest.raises(UserError, match=r"launch\.py prepare"):
        open_stream(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    write_data_manifest(tmp_path / "empty", [])
    with pytest.raises(UserError, match="no clips"):
        open_stream(str(tmp_path / "empty"))
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(UserError, match="damaged"):
        open_stream(folder)


def test_another_manifest_has_another_digest(tmp_path: Path) -> None:
    first = open_stream(make_data(tmp_path / "a", [4])).digest
    assert first == open_stream(make_data(tmp_path / "b", [4])).digest
    assert first != open_stream(make_data(tmp_path / "c", [5])).digest


@pytest.mark.parametrize("count", [3, 8, 20])
def test_reference_clips_are_always_the_same_and_spread(count: int, tmp_path: Path) -> None:
    folder = make_data(tmp_path, [3, 2, 3])
    clips = open_stream(folder, frames=3).reference_clips(count)
    assert clips.shape == (count, 3, 3, SIZE, SIZE)
    assert torch.equal(clips, open_stream(folder, frames=3).reference_clips(count))
    assert torch.equal(clips, open_stream(folder, frames=3, seed=5).reference_clips(count))
    shown = Counter(clips[:, 0, 0, 0, 0].tolist())
    assert len(shown) == min(count, 8) and max(shown.values()) <= -(-count // 8)
