"""Shards: reproducible bytes, readable by stock webdataset, damage found before use."""

import io
import tarfile
import warnings
from pathlib import Path

import pytest
import webdataset

from distgan.data.manifest import ShardEntry
from distgan.data.shards import DamagedShardError, ShardWriter, read_shard
from tests.damage import flip_bit

SAMPLES = [(f"v{i:05d}-c0000", b'{"source": "a.mp4"}', bytes([i]) * 3000) for i in range(12)]


def write(folder: Path, shard_bytes: float = 20_000) -> list[ShardEntry]:
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(str(folder), "npy", shard_bytes)
    for key, facts, clip in SAMPLES:
        writer.write(key, facts, clip)
    writer.finish()
    return writer.entries


def test_samples_come_back_in_order_from_shards_of_the_wanted_size(tmp_path: Path) -> None:
    entries = write(tmp_path)
    assert [entry.name for entry in entries] == [f"shard-{i:06d}.tar" for i in range(len(entries))]
    assert len(entries) == 3
    read = [pair for entry in entries for pair in read_shard(str(tmp_path), entry, "npy")]
    assert [clip for _, clip in read] == [clip for _, _, clip in SAMPLES]
    assert read[0][0] == {"source": "a.mp4"}
    assert [key for entry in entries for key in entry.keys] == [key for key, _, _ in SAMPLES]


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a") == write(tmp_path / "b")


def test_stock_webdataset_reads_them(tmp_path: Path) -> None:
    urls = [str(tmp_path / entry.name) for entry in write(tmp_path)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [(s["__key__"], s["json"], s["npy"]) for s in samples] == SAMPLES


def test_files_are_closed(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for entry in write(tmp_path):
            read_shard(str(tmp_path), entry, "npy")


@pytest.mark.parametrize("place", [0.0005, 0.3, 0.5, 0.9])
def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, place: float) -> None:
    entry = write(tmp_path)[0]
    path = tmp_path / entry.name
    flip_bit(path, int(place * path.stat().st_size))
    with pytest.raises(DamagedShardError, match=rf"{entry.name}.*sha256"):
        read_shard(str(tmp_path), entry, "npy")


def test_truncated_and_missing_shards_are_named(tmp_path: Path) -> None:
    entry = write(tmp_path)[0]
    path = tmp_path / entry.name
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DamagedShardError, match=rf"{entry.name} has \d+ bytes instead of"):
        read_shard(str(tmp_path), entry, "npy")
    path.unlink()
    with pytest.raises(DamagedShardError, match=rf"{entry.name} is missing"):
        read_shard(str(tmp_path), entry, "npy")


def test_a_shard_must_hold_exactly_what_the_manifest_lists(tmp_path: Path) -> None:
    entry = write(tmp_path)[0]
    fewer = entry.model_copy(
        update={"samples": entry.samples - 1, "keys": entry.keys[1:], "crc32": entry.crc32[1:]}
    )
    other = entry.model_copy(update={"keys": ("x", *entry.keys[1:])})
    wrong = entry.model_copy(update={"crc32": (0, *entry.crc32[1:])})
    for bad, message in ((fewer, "exactly"), (other, "lacks"), (wrong, "crc32")):
        with pytest.raises(DamagedShardError, match=message):
            read_shard(str(tmp_path), bad, "npy")


def test_a_link_in_a_shard_is_refused(tmp_path: Path) -> None:
    import hashlib

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("k.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    data = buffer.getvalue()
    (tmp_path / "shard-000000.tar").write_bytes(data)
    entry = ShardEntry(
        name="shard-000000.tar",
        samples=1,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        keys=("k",),
        crc32=(0,),
    )
    with pytest.raises(DamagedShardError):
        read_shard(str(tmp_path), entry, "npy")
