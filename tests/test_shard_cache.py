"""The cache gives the right bytes or none, keeps to its limit, and never costs a run."""

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from distgan import storage
from distgan.config import DataConfig
from distgan.data.shard_cache import ShardCache
from distgan.data.stream import ClipStream
from tests.damage import flip_bit
from tests.numbered_clips import SIZE, make_data
from tests.object_servers import BUCKET, options_for, rclone_server, with_options

SHARD = 100_000


class Storage:
    """Stands for the object storage: shards by number, and what was read of them."""

    def __init__(self) -> None:
        self.shards = [np.random.default_rng(n).bytes(SHARD) for n in range(6)]
        self.reads: list[int] = []

    def read_large(
        self, url: str, *, is_right: object = None, size: int = 0, max_bytes: int = 0
    ) -> bytes:
        if "://" not in url:
            return Path(url).read_bytes()
        number = int(url.removeprefix("s3://bucket/"))
        self.reads.append(number)
        data = self.shards[number]
        assert callable(is_right)
        is_right(data)
        return data

    def sha256(self, number: int) -> str:
        return hashlib.sha256(np.random.default_rng(number).bytes(SHARD)).hexdigest()

    def get(self, cache: ShardCache, number: int) -> bytes:
        wanted = self.sha256(number)
        return cache.read(
            f"s3://bucket/{number}", wanted, lambda data: hashlib.sha256(data).hexdigest() == wanted
        )


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Storage:
    remote = Storage()
    monkeypatch.setattr(storage, "read_large", remote.read_large)
    return remote


def cache_of(folder: Path, shards: float) -> ShardCache:
    return ShardCache(DataConfig(cache_dir=str(folder), cache_gigabytes=shards * SHARD / 1e9))


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {".lock"}


def test_a_shard_is_fetched_once(remote: Storage, tmp_path: Path) -> None:
    for _ in range(2):  # a second start of the program
        cache = cache_of(tmp_path / "cache", 3)
        for _ in range(3):
            assert remote.get(cache, 1) == remote.shards[1]
    assert remote.reads == [1]


def test_the_limit_holds_and_the_least_recently_used_leave(remote: Storage, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3)
    foreign = tmp_path / "holiday.tar"
    foreign.write_bytes(b"mine")
    for moment, number in enumerate((0, 1, 2, 0, 3)):
        remote.get(cache, number)
        file = tmp_path / f"{remote.sha256(number)}.tar"
        os.utime(file, (moment, moment))
        held = sum(f.stat().st_size for f in tmp_path.glob("?" * 64 + ".tar"))
        assert held <= cache.limit_bytes
    assert names(tmp_path) == {f"{remote.sha256(n)}.tar" for n in (0, 2, 3)} | {"holiday.tar"}
    assert foreign.read_bytes() == b"mine"


def test_a_shard_larger_than_the_cache_is_read_all_the_same(
    remote: Storage, tmp_path: Path
) -> None:
    cache = cache_of(tmp_path / "cache", 0.5)
    assert remote.get(cache, 1) == remote.get(cache, 1) == remote.shards[1]
    assert remote.reads == [1, 1]


def test_damage_in_the_cache_is_found_and_mended(
    remote: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(tmp_path, 3)
    remote.get(cache, 1)
    flip_bit(tmp_path / f"{remote.sha256(1)}.tar", 777)
    assert remote.get(cache, 1) == remote.shards[1] and "damaged" in caplog.text
    assert remote.get(cache, 1) == remote.shards[1]
    assert remote.reads == [1, 1]


def test_what_is_damaged_in_the_storage_is_not_kept(remote: Storage, tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", 3)
    remote.shards[1] = remote.shards[1][:-1]
    assert remote.get(cache, 1) == remote.get(cache, 1) == remote.shards[1]
    assert remote.reads == [1, 1] and not (tmp_path / "cache").exists()


def test_what_a_killed_process_left_is_cleared(remote: Storage, tmp_path: Path) -> None:
    (tmp_path / f".{remote.sha256(2)}.tar.partial").write_bytes(b"half")
    remote.get(cache_of(tmp_path, 3), 1)
    assert names(tmp_path) == {f"{remote.sha256(1)}.tar"}


def test_a_cache_that_can_t_be_used_is_said_once_and_done_without(
    remote: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = cache_of(tmp_path / "file" / "cache", 3)
    for number in (1, 2):
        assert remote.get(cache, number) == remote.shards[number]
    assert caplog.text.count("can't use data.cache_dir") == 1


def test_a_stream_from_s3_reads_each_shard_once_into_the_cache(tmp_path: Path) -> None:
    """And then needs the storage for the manifest only; local data is not copied."""
    local = make_data(tmp_path / "root" / BUCKET / "data", [5, 6, 7])
    config = DataConfig(
        resolution=SIZE, clip_frames=2, lanes=2, num_workers=0, cache_dir=str(tmp_path / "cache")
    )

    def clips(folder: str) -> list[int]:
        batches = ClipStream(folder, config, seed=0, batch_size=2).batches()
        return [int(c[0, 0, 0, 0]) for b in itertools.islice(batches, 20) for c in b.clips]

    expected = clips(local)
    assert not (tmp_path / "cache").exists()
    with rclone_server(tmp_path / "root") as port, with_options(options_for(port)):
        assert clips(f"s3://{BUCKET}/data") == expected
        assert len(names(tmp_path / "cache")) == 3
        for shard in Path(local).glob("shard-*.tar"):
            shard.unlink()
        stream = ClipStream(f"s3://{BUCKET}/data", config, seed=0, batch_size=2)
        again = [
            int(c[0, 0, 0, 0]) for b in itertools.islice(stream.batches(), 20) for c in b.clips
        ]
        assert again == expected and stream.damage.num_shards == 0
