"""Damage is found wherever it is, counted, replaced in its place, and never more than allowed."""

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distgan import storage
from distgan.config import DataConfig
from distgan.config_loading import load_config, with_values
from distgan.data import clip_reader
from distgan.data.damage import DamageTally, ShardDamage
from distgan.data.manifest import Manifest, read_manifest, write_manifest
from distgan.data.shard_reader import Shard
from distgan.data.shards import ShardWriter
from distgan.data.stream import ClipBatch, ClipStream
from distgan.data.verify import verify
from distgan.errors import StorageError, UserError
from distgan.local import train_locally
from tests.checkpoints import state_hash
from tests.damage import KINDS, Corruption, clip_places, corrupt, flip_bit
from tests.numbered_clips import RED, make_data, open_stream, write_data_manifest
from tests.test_resume import logged
from tests.tiny import TINY, launch

SIZES = [5, 4, 6, 3]
EPOCH = sum(SIZES)
BATCHES = -(-EPOCH // 4)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set of `SIZES`."""
    return Path(make_data(tmp_path_factory.mktemp("whole"), SIZES))


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


def shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def take(stream: ClipStream, batches: int, start: int = 0) -> list[ClipBatch]:
    with contextlib.closing(stream.batches(start)) as endless:
        return list(itertools.islice(endless, batches))


def clips_of(batches: Iterable[ClipBatch]) -> list[torch.Tensor]:
    return [clip for batch in batches for clip in batch.clips]


def number_of(sample: tuple[int, int]) -> int:
    """What the clip's red says."""
    return sum(SIZES[: sample[0]]) + sample[1]


def check_verify(data: Path, corruption: Corruption, lost: int) -> None:
    _, problems = verify(str(data), processes=1, show_progress=False)
    named = {problem.partition(":")[0] for problem in problems}
    assert named == {shard(data, number).name for number in corruption.shards}, corruption
    single = corruption.what not in ("missing", "swapped")
    about_clips = [problem for problem in problems if "its facts" not in problem]
    assert len(about_clips) == len(corruption.shards) + lost * single, corruption


def check_stream(data: Path, corruption: Corruption, clean: list[torch.Tensor], red: int) -> int:
    """Reads an epoch and returns how many samples were found damaged."""
    stream = open_stream(str(data), max_damaged=1)
    delivered = clips_of(take(stream, BATCHES))
    metrics = stream.damage.metrics()
    assert metrics["data/damaged_shards"] == len(corruption.shards), corruption
    lost = {(s, i) for s, samples in tally_of(stream).items() for i in samples}
    assert lost == corruption.samples or (lost < corruption.samples and not corruption.all_are_lost)
    assert metrics["data/damaged_samples"] == len(lost)
    causes = sum(number for tag, number in metrics.items() if tag.startswith("data/damaged/"))
    assert causes == (len(lost) or len(corruption.shards))
    wrong = {number_of(sample) for sample in lost}
    for position, (got, right) in enumerate(zip(delivered, clean, strict=True)):
        if stream.order.sample(position)[1] in lost:
            assert round(int(got[0, 0, 0, 0]) / red) not in wrong
        else:
            assert torch.equal(got, right), corruption
    return len(lost)


def tally_of(stream: ClipStream) -> dict[int, dict[int, str]]:
    return {
        int(number): {int(index): cause for index, cause in entry["samples"].items()}
        for number, entry in stream.damage.state().items()
    }


@pytest.fixture(scope="module")
def whole_mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `whole`, of mp4 clips."""
    return Path(make_data(tmp_path_factory.mktemp("whole-mp4"), SIZES, "mp4"))


@pytest.mark.parametrize(
    ("clip_format", "block"), [("npy", 0), ("npy", 1), ("npy", 2), ("npy", 3), ("mp4", 0)]
)  # mp4 takes ten times longer
def test_200_random_corruptions_are_found_counted_and_replaced(
    whole: Path, whole_mp4: Path, tmp_path: Path, clip_format: str, block: int
) -> None:
    """By the stream and by verify; what is not hit is delivered in its place, bit by bit."""
    sound = whole if clip_format == "npy" else whole_mp4
    data = Path(shutil.copytree(sound, tmp_path / "data"))
    clean = clips_of(take(open_stream(str(sound)), BATCHES))
    files = [shard(data, number) for number in range(len(SIZES))]
    for trial in range(block * 50, block * 50 + 50):
        for file in files:
            shutil.copyfile(sound / file.name, file)
        corruption = corrupt(files, KINDS[trial % len(KINDS)], np.random.default_rng(trial))
        lost = check_stream(data, corruption, clean, RED[clip_format])
        check_verify(data, corruption, lost)


def test_sound_data_raises_no_alarm(
    whole: Path, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (str(whole), tiny_data):
        assert verify(folder, processes=1, show_progress=False)[1] == []
    stream = open_stream(str(whole), max_damaged=0)
    take(stream, 3 * BATCHES)
    stream.reference_clips(7)
    assert stream.damage.metrics() == {"data/damaged_samples": 0, "data/damaged_shards": 0}
    assert stream.damage.state() == {} and "damaged" not in capsys.readouterr().out


def make_undecodable(folder: Path, sizes: list[int], bad: dict[int, bytes]) -> str:
    """Numbered clips, some of which have other bytes, with the right digests."""
    make_data(folder, sizes)
    manifest, _ = read_manifest(str(folder))
    writer = ShardWriter(str(folder), "npy", 1e12)
    number = 0
    for index, entry in enumerate(manifest.shards):
        held = clip_reader.read_shard(str(folder), manifest, index)
        for key, clip in zip(entry.keys, held.clips, strict=True):
            assert clip is not None
            writer.write(key, b"{}", bad.get(number, clip))
            number += 1
        writer.finish()
    write_data_manifest(folder, writer.entries)
    return str(folder)


def damage_badly(folder: Path) -> str:
    """A data set with every cause of damage that one shard can have, and a missing one."""
    make_undecodable(folder, [6, 5, 7, 4, 8, 3], {2: b"no clip", 20: b""})
    flip_bit(shard(folder, 1), clip_places(shard(folder, 1))[2][1] - 500)
    flip_bit(shard(folder, 1), clip_places(shard(folder, 2))[4][1] + 700)
    shard(folder, 3).unlink()
    file = shard(folder, 4)
    file.write_bytes(file.read_bytes()[: clip_places(file)[5][1]])
    return str(folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_about_damage(workers: int, tmp_path: Path) -> None:
    folder = damage_badly(tmp_path)
    options: dict[str, Any] = {"lanes": 3, "batch": 6, "frames": 3, "max_damaged": 1}
    alone, shared = open_stream(folder, **options), open_stream(folder, workers=workers, **options)
    with contextlib.closing(shared.batches()) as batches:
        for expected, got in itertools.islice(zip(alone.batches(), batches, strict=False), 12):
            assert torch.equal(expected.clips, got.clips)
            assert alone.damage.state() == shared.damage.state()
    causes = {tag.rpartition("/")[2] for tag in shared.damage.metrics() if "damaged/" in tag}
    assert causes == {"undecodable", "shard_missing", "shard_truncated", "sample_missing", "crc32"}


def test_a_start_anywhere_goes_on_with_the_same_replacements_and_counts(tmp_path: Path) -> None:
    folder = damage_badly(tmp_path)
    options: dict[str, Any] = {"lanes": 3, "batch": 6, "max_damaged": 1}
    stream = open_stream(folder, **options)
    whole_run, states = [], []
    for batch in itertools.islice(stream.batches(), 15):
        whole_run.append(batch.clips)
        states.append(json.dumps(stream.damage.state()))
    for skipped in (1, 4, 9):
        late = open_stream(folder, **options)
        late.damage.load_state(json.loads(states[skipped - 1]))
        batches = itertools.islice(late.batches(6 * skipped), 15 - skipped)
        for place, batch in enumerate(batches, start=skipped):
            assert torch.equal(batch.clips, whole_run[place])
            assert json.dumps(late.damage.state()) == states[place]


def test_replacements_of_a_lost_shard_are_many_and_change_with_the_epoch(data: Path) -> None:
    shard(data, 2).unlink()
    stream = open_stream(str(data), max_damaged=1)
    delivered = [int(clip[0, 0, 0, 0]) for clip in clips_of(take(stream, 4 * BATCHES))]
    chosen = [
        [
            delivered[p]
            for p in range(e * EPOCH, (e + 1) * EPOCH)
            if stream.order.sample(p)[1][0] == 2
        ]
        for e in range(4)
    ]
    assert all(len(epoch) == 6 and not set(epoch) & set(range(9, 15)) for epoch in chosen)
    assert all(len(set(epoch)) > 1 for epoch in chosen)
    assert len({tuple(epoch) for epoch in chosen}) > 1


def test_a_clip_of_another_size_is_damage(tmp_path: Path) -> None:
    from distgan.data.clip_formats import encode

    small = encode(np.zeros((7, 4, 4, 3), np.uint8), 8, "npy")
    short = encode(np.zeros((5, 8, 8, 3), np.uint8), 8, "npy")
    folder = make_undecodable(tmp_path, SIZES, {1: small, 6: short})
    stream = open_stream(folder, frames=7, max_damaged=1)
    take(stream, BATCHES)
    assert stream.damage.metrics()["data/damaged/undecodable"] == 2
    _, problems = verify(folder, processes=1, show_progress=False)
    assert problems == [
        "shard-000000.tar: clip-0001: has 7 frames of 4x4 pixels instead of 7 of 8x8",
        "shard-000001.tar: clip-0006: has 5 frames of 8x8 pixels instead of 7 of 8x8",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_much_damage_is_one_clear_message(data: Path, workers: int) -> None:
    shard(data, 1).unlink()
    allowed = open_stream(str(data), workers=workers, max_damaged=4 / EPOCH)
    assert len(take(allowed, BATCHES)) == BATCHES
    with pytest.raises(UserError) as raised:
        take(open_stream(str(data), workers=workers, max_damaged=3.9 / EPOCH), BATCHES)
    for words in (
        "4 of 18 samples", "shard-000001.tar is missing", "shard_missing", "copy these",
        "data.max_damaged_fraction=0.2", f"data verify --data {data}",
    ):  # fmt: skip
        assert words in str(raised.value)


def test_each_damaged_shard_is_named_once(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(data, 1).unlink()
    flip_bit(shard(data, 2), clip_places(shard(data, 2))[0][1])
    take(open_stream(str(data), max_damaged=1), 2 * BATCHES)
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "damaged data: shard-000001.tar is missing: 4 of 4 samples damaged (shard_missing)",
        "damaged data: shard-000002.tar has another sha256 than the manifest says: "
        "1 of 6 samples damaged (crc32)",
    ]


def test_a_message_about_many_shards_stays_short(whole: Path) -> None:
    manifest, _ = read_manifest(str(whole))
    many = manifest.model_copy(update={"shards": manifest.shards * 5})
    tally = DamageTally(str(whole), many, 0)
    tally.add(ShardDamage(number, "is missing", ((0, "shard_missing"),)) for number in range(20))
    assert "and 15 more shards" in tally.summary() and len(tally.summary()) < 600


def test_with_nothing_left_it_stops_whatever_the_limit(data: Path) -> None:
    for number in range(len(SIZES)):
        shard(data, number).unlink()
    with pytest.raises(UserError, match="every sample of the data set"):
        take(open_stream(str(data), max_damaged=1), 1)


def test_an_outage_is_no_damage(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> bytes:
        raise StorageError("down for too long")

    stream = open_stream(str(data), max_damaged=1)
    monkeypatch.setattr(storage, "read_large", fail)
    with pytest.raises(StorageError):
        take(stream, 1)
    assert stream.damage.num_shards == 0


def test_damage_costs_few_further_reads(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(data, 2).unlink()
    reads: list[int] = []
    read_shard = clip_reader.read_shard

    def counting(folder: str, manifest: Manifest, index: int, cache: None) -> Shard:
        reads.append(index)
        return read_shard(folder, manifest, index, cache)

    monkeypatch.setattr(clip_reader, "read_shard", counting)
    take(open_stream(str(data), lanes=2, batch=2, max_damaged=1), EPOCH // 2)
    ahead = DataConfig().shards_in_flight
    assert reads.count(2) == 1 and len(reads) <= 7 + ahead


@pytest.fixture(scope="module")
def damaged_tiny(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips a shard, one of them damaged in one shard, and another shard missing."""
    folder = tmp_path_factory.mktemp("damaged")
    manifest, _ = read_manifest(tiny_data)
    writer = ShardWriter(str(folder), "npy", 10_000)
    for index, entry in enumerate(manifest.shards):
        held = clip_reader.read_shard(tiny_data, manifest, index)
        for key, clip in zip(entry.keys, held.clips, strict=True):
            assert clip is not None
            writer.write(key, b"{}", clip)
    writer.finish()
    assert len(writer.entries) == 20
    write_manifest(str(folder), manifest.model_copy(update={"shards": tuple(writer.entries)}))
    flip_bit(shard(folder, 0), clip_places(shard(folder, 0))[0][1] + 600)
    shard(folder, 2).unlink()
    return folder


def train(run_dir: Path, data: Path, **values: Any) -> None:
    keys = {"run.dir": str(run_dir), "data.shards": str(data), "data.max_damaged_fraction": 0.5}
    keys |= {"log.sample_interval_steps": 11, "log.num_samples": 2}
    changes = {key.replace("__", "."): value for key, value in values.items()}
    train_locally(
        with_values(load_config(overrides=TINY), keys | changes),
        show_progress=False,
    )


def test_a_resumed_run_equals_an_uninterrupted_one_with_damage(
    damaged_tiny: Path, tmp_path: Path
) -> None:
    train(tmp_path / "one", damaged_tiny)
    last = logged(tmp_path / "one")[-1]
    assert (
        last["data/damaged_samples"]
        == last["data/damaged/crc32"] + (last["data/damaged/shard_missing"])
    )
    assert last["data/damaged_shards"] == 2
    train(tmp_path / "two", damaged_tiny, stop__max_epochs=1.3)
    assert logged(tmp_path / "two")[-1]["step"] < 9
    train(tmp_path / "two", damaged_tiny, data__max_damaged_fraction=0.4)  # free to change
    assert state_hash(tmp_path / "two", 12) == state_hash(tmp_path / "one", 12)
    assert logged(tmp_path / "two") == logged(tmp_path / "one")


def test_training_stops_with_exit_code_2_and_names_the_shard(
    damaged_tiny: Path, tmp_path: Path
) -> None:
    done = launch("train", *TINY, f"data.shards={damaged_tiny}", f"run.dir={tmp_path / 'run'}",
                  "data.num_workers=1")  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("launch.py ")]
    assert "data.max_damaged_fraction=0.001" in line and "Traceback" not in done.stderr
    assert "shard-000000.tar" in line or "shard-000002.tar" in line
