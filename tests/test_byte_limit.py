"""The limit on a video's bytes: the same outcome wherever it lies, and no more is read."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distgan import storage
from distgan.config import LimitsConfig
from distgan.config_loading import with_values
from distgan.data.fetching import local_copy
from distgan.data.prepare import prepare
from distgan.data.videos import DroppedVideoError
from distgan.errors import TooLargeError
from distgan.object_store import Facts, ObjectStore
from tests.killed_prepare import SMALL
from tests.object_servers import BUCKET, options_for, rclone_server, with_options
from tests.test_prepare import tree
from tests.video_makers import textured, write_video


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """The folder of a bucket that this process can reach."""
    with rclone_server(tmp_path / "server") as port, with_options(options_for(port)):
        yield tmp_path / "server" / BUCKET


def test_a_large_video_is_left_out_wherever_it_lies(server: Path, tmp_path: Path) -> None:
    small = write_video(server / "in/small.mkv", textured(32, 48, 48))
    limit = (small.stat().st_size + 1000) / 1e6
    (server / "in/large.mkv").write_bytes(small.read_bytes() + b"\0" * 2000)
    shutil.copytree(server / "in", tmp_path / "in")
    config = with_values(SMALL, {"prepare.limits.max_megabytes": limit})
    there = config.model_copy(update={"storage": storage.options()})
    manifest = prepare(str(tmp_path / "in"), str(tmp_path / "out"), there, show_progress=False)
    assert manifest.dropped["videos_over_max_megabytes"] == 1
    prepare(f"s3://{BUCKET}/in", f"s3://{BUCKET}/out", there, show_progress=False)
    assert tree(server / "out") == tree(tmp_path / "out")
    large = json.loads((server / "out/videos.jsonl").read_text().splitlines()[0])
    assert (large["video"], large["sha256"]) == ("large.mkv", "")
    # Found again, it is the same data set.
    assert prepare(f"s3://{BUCKET}/in", f"s3://{BUCKET}/out", there, show_progress=False)


def test_no_more_than_the_limit_is_fetched(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 400
    (server / "video.mp4").write_bytes(data)
    url, copy = f"s3://{BUCKET}/video.mp4", tmp_path / "copy"
    storage.fetch(url, copy, max_bytes=len(data))
    assert copy.read_bytes() == data
    read: list[int] = []
    read_range = ObjectStore.read_range

    def counted(self: ObjectStore, url: str, start: int, length: int) -> bytes:
        read.append(length)
        return read_range(self, url, start, length)

    monkeypatch.setattr(ObjectStore, "read_range", counted)
    with pytest.raises(TooLargeError):
        storage.fetch(url, copy, max_bytes=len(data) - 1)
    assert read == [], "its size is asked for first"

    def lying(self: ObjectStore, url: str, *_: Any) -> Facts:
        return Facts(size=10, is_folder=False, md5="")

    def longer(self: ObjectStore, url: str, start: int, length: int) -> bytes:
        return data  # of a server that sends more than it was asked for

    monkeypatch.setattr(ObjectStore, "facts", lying)
    monkeypatch.setattr(ObjectStore, "read_range", longer)
    with pytest.raises(TooLargeError):
        storage.fetch(url, copy, max_bytes=50)
    assert copy.stat().st_size <= 50


def test_a_fetched_copy_goes_with_its_context(server: Path, tmp_path: Path) -> None:
    (server / "a.mp4").write_bytes(b"x" * 100)
    with local_copy(f"s3://{BUCKET}", "a.mp4", LimitsConfig(), str(tmp_path)) as copy:
        assert copy.is_relative_to(tmp_path) and hashlib.sha256(copy.read_bytes()).hexdigest()
    assert not copy.parent.exists()
    limits = LimitsConfig(max_megabytes=50e-6)
    with pytest.raises(DroppedVideoError), local_copy(f"s3://{BUCKET}", "a.mp4", limits):
        pass
