"""Metrics and events of a run on object storage: uploaded in time, none lost without a word."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from distgan import storage
from distgan.config import StorageConfig
from distgan.errors import StorageError
from distgan.metrics import writer as writer_module
from distgan.metrics.spool import UploadedFolder
from distgan.metrics.writer import MetricsWriter, read_metrics
from tests.object_servers import with_options


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Object storage in this process's memory; uploads come at once."""
    with with_options(StorageConfig(upload_interval_seconds=0.05)):
        yield f"memory://bucket/{request.node.name}"


def until(url: str, lines: int) -> None:
    """Waits for an upload in the background."""
    deadline = time.monotonic() + 10
    path = storage.join(url, "metrics.jsonl")
    while not storage.exists(path) or len(read_metrics(path)) < lines:
        assert time.monotonic() < deadline, "nothing was uploaded"
        time.sleep(0.01)


def test_lines_arrive_without_a_flush(url: str) -> None:
    with MetricsWriter(url) as writer:
        writer.scalars(1, {"a": 1.0})
        until(url, 1)
        writer.scalars(2, {"a": 2.0})
        until(url, 2)


def test_an_upload_and_the_end_send_all_at_once(url: str) -> None:
    with with_options(StorageConfig(upload_interval_seconds=1000)):
        with MetricsWriter(url) as writer:
            writer.scalars(1, {"a": 1.0})
            writer.flush()
            assert not storage.exists(f"{url}/metrics.jsonl"), "training would wait for it"
            writer.upload()
            assert len(read_metrics(f"{url}/metrics.jsonl")) == 1
            writer.scalars(2, {"a": 2.0})
            spool = writer._spool
        assert len(read_metrics(f"{url}/metrics.jsonl")) == 2
        assert spool is not None and not spool.path.exists(), "the local files are gone"


def test_resume_goes_on_from_the_checkpoint(url: str, tmp_path: Path) -> None:
    for start, steps, offset in ((0, range(1, 8), 0), (4, range(5, 7), 100)):
        with MetricsWriter(url, start) as writer:
            for step in steps:
                writer.scalars(step, {"a": step + offset})
    assert [m["a"] for m in read_metrics(f"{url}/metrics.jsonl")] == [1, 2, 3, 4, 105, 106]
    assert tensorboard_sees(url, tmp_path) == [1, 2, 3, 4, 105, 106]


def test_event_files_end_before_they_are_large(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole files are uploaded: one that only grew would cost more and more each time."""
    monkeypatch.setattr(writer_module, "_ROLL_BYTES", 500)
    # Files of one second are read in the order of this number, as text: 100 would precede 99.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))
    with MetricsWriter(url) as writer:
        for step in range(1, 101):
            writer.scalars(step, {"a": step})
    assert len(storage.list_names(f"{url}/tensorboard")) > 3
    assert tensorboard_sees(url, tmp_path) == list(range(1, 101))


def tensorboard_sees(url: str, folder: Path) -> list[float]:
    for name in storage.list_names(f"{url}/tensorboard"):
        storage.fetch(f"{url}/tensorboard/{name}", folder / name)
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [event.value for event in accumulator.Scalars("a")]


def test_a_failed_upload_is_said_at_the_next_line(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def failing(path: str, data: bytes) -> None:
        nonlocal calls
        calls += 1
        raise StorageError("the storage is gone")

    monkeypatch.setattr(storage, "write_bytes", failing)
    with pytest.raises(StorageError, match="gone"), MetricsWriter(url) as writer:
        for step in range(1, 1000):
            writer.scalars(step, {"a": 1.0})
            time.sleep(0.01)
    assert calls == 1, "no further attempts once it has failed for long"


def test_files_that_did_not_change_are_not_sent_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(storage, "write_bytes", lambda path, data: sent.append(path))
    folder = UploadedFolder(url, interval_s=1000)
    (folder.path / "a").write_bytes(b"1")
    (folder.path / "b").write_bytes(b"1")
    folder.upload()
    (folder.path / "a").write_bytes(b"12")
    folder.upload()
    folder.close()
    assert sent == [f"{url}/a", f"{url}/b", f"{url}/a"]
