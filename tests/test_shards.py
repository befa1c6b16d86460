"""Shards: reproducible bytes, readable by stock webdataset, damage found and the rest saved."""

import io
import tarfile
import warnings
from pathlib import Path

import pytest
import webdataset

from distgan.data.damage import Cause
from distgan.data.manifest import ClipSpec, Manifest, ShardEntry
from distgan.data.shard_reader import Shard, read_shard
from distgan.data.shards import ShardWriter
from tests.damage import flip_bit

SAMPLES = [(f"v{i:05d}-c0000", b'{"source": "a.mp4"}', bytes([i]) * 3000) for i in range(12)]


def write(folder: Path, shard_bytes: float = 20_000) -> list[ShardEntry]:
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(str(folder), "npy", shard_bytes)
    for key, facts, clip in SAMPLES:
        writer.write(key, facts, clip)
    writer.finish()
    return writer.entries


def read(
    folder: Path, entries: list[ShardEntry], index: int = 0, *, check_each: bool = False
) -> Shard:
    spec = ClipSpec(resolution=8, stored_frames=7, frame_rate_hz=8, clip_format="npy")
    manifest = Manifest(clip=spec, shards=tuple(entries), prepare={}, counts={}, dropped={})
    return read_shard(str(folder), manifest, index, check_each=check_each)


def causes(shard: Shard) -> dict[int, Cause]:
    """Damaged samples, which must be exactly those without a clip."""
    found = dict(shard.damage.samples) if shard.damage else {}
    assert list(found) == [i for i, clip in enumerate(shard.clips) if clip is None]
    return found


def test_samples_come_back_in_order_from_shards_of_the_wanted_size(tmp_path: Path) -> None:
    entries = write(tmp_path)
    assert [entry.name for entry in entries] == [f"shard-{i:06d}.tar" for i in range(len(entries))]
    assert len(entries) == 3
    shards = [read(tmp_path, entries, index) for index in range(3)]
    assert [clip for shard in shards for clip in shard.clips] == [clip for _, _, clip in SAMPLES]
    assert [text for shard in shards for text in shard.facts] == [text for _, text, _ in SAMPLES]
    assert not any(shard.damage or shard.unlisted for shard in shards)
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
        read(tmp_path, write(tmp_path))


@pytest.mark.parametrize("place", [0.0005, 0.3, 0.5, 0.9])
def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, place: float) -> None:
    entries = write(tmp_path)
    path = tmp_path / entries[0].name
    flip_bit(path, int(place * path.stat().st_size))
    shard = read(tmp_path, entries)
    assert shard.damage is not None and "sha256" in shard.damage.problem
    assert len(causes(shard)) <= 1
    for clip, (_, _, right) in zip(shard.clips, SAMPLES, strict=False):
        assert clip in (None, right)


def test_truncated_missing_and_swapped_shards(tmp_path: Path) -> None:
    entries = write(tmp_path)
    first, second = (tmp_path / entry.name for entry in entries[:2])
    first.write_bytes(second.read_bytes())
    shard = read(tmp_path, entries)
    assert shard.damage and shard.damage.problem == "holds what the manifest calls shard-000001.tar"
    assert set(causes(shard).values()) == {"shard_swapped"}
    second.write_bytes(second.read_bytes()[:-10_000])
    shard = read(tmp_path, entries, 1)
    assert shard.damage and f"instead of {entries[1].bytes}" in shard.damage.problem
    assert set(causes(shard).values()) == {"shard_truncated"}
    second.unlink()
    shard = read(tmp_path, entries, 1)
    assert shard.damage and shard.damage.problem == "is missing"
    assert causes(shard) == dict.fromkeys(range(entries[1].samples), "shard_missing")


def test_a_shard_that_grew_loses_no_clip(tmp_path: Path) -> None:
    entries = write(tmp_path)
    path = tmp_path / entries[0].name
    path.write_bytes(path.read_bytes() + b"rubbish")
    shard = read(tmp_path, entries)
    assert shard.damage and "bytes instead of" in shard.damage.problem
    assert causes(shard) == {}


def test_each_sample_is_held_against_the_manifest(tmp_path: Path) -> None:
    """Also where the shard's own digest is right."""
    entry = write(tmp_path)[0]
    other = entry.model_copy(update={"keys": ("x", *entry.keys[1:])})
    shard = read(tmp_path, [other])
    assert causes(shard) == {0: "sample_missing"}
    assert shard.unlisted == (f"{entry.keys[0]}.npy",)
    wrong = entry.model_copy(update={"crc32": (0, *entry.crc32[1:])})
    assert causes(read(tmp_path, [wrong])) == {}  # the shard's own digest vouches for its clips
    shard = read(tmp_path, [wrong], check_each=True)
    assert causes(shard) == {0: "crc32"}
    assert shard.damage and "samples that the manifest lists" in shard.damage.problem


def test_a_link_in_a_shard_is_not_followed(tmp_path: Path) -> None:
    import hashlib

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("k.npy")
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
    assert causes(read(tmp_path, [entry])) == {0: "sample_missing"}
