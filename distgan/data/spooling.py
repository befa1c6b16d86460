"""The clips of one video on their way into shards: a file of its own, which appears when whole.

A spool is a tar of samples as in a shard, then one member that tells what became of the video. It
lies in the output's unfinished part, on disk or on object storage, so whoever goes on after a kill
finds all videos that were finished.
"""

import contextlib
import io
import json
import os
import tarfile
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from distgan import storage
from distgan.errors import DistganError, UserError
from distgan.temporary import temporary_folder

_OUTCOME_NAME = "outcome.json"
_FETCHED_AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class VideoJob:
    number: int
    """Place in the sorted list of videos; part of the clips' keys."""
    root: str
    """Local folder or URL."""
    path: str
    """Relative to `root`."""
    spool: str
    """File or URL that takes the clips."""


@dataclass(frozen=True, kw_only=True)
class VideoOutcome:
    path: str
    bytes: int
    sha256: str
    """Of the video file; empty if it wasn't read."""
    cause: str = ""
    """Why the video gave no clip, as a key of the manifest's `dropped`; empty if it gave some."""
    detail: str = ""
    counts: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "counts": dict(self.counts)}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Self:
        """The way back from `as_dict`."""
        return cls(**{**facts, "counts": Counter(facts["counts"])})


class SpoolWriter:
    """Takes samples; `discard` drops them again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._tar = tarfile.open(file, mode="w")  # noqa: SIM115 (the context of `new_spool` closes it)

    def add(self, key: str, facts: bytes, clip: bytes, clip_format: str) -> None:
        """Adds one sample; `facts` is the text of `KEY.json`."""
        self._add(f"{key}.json", facts)
        self._add(f"{key}.{clip_format}", clip)

    def discard(self) -> None:
        """Forgets all samples so far."""
        self._tar.close()
        self._tar = tarfile.open(self.file, mode="w")  # noqa: SIM115 (the context of `new_spool` closes it)

    def finish(self, outcome: VideoOutcome) -> None:
        """Adds what became of the video, as the last member, and flushes the file to disk."""
        self._add(_OUTCOME_NAME, json.dumps(outcome.as_dict()).encode())
        self.close()
        with self.file.open("rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        self._tar.close()

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


@contextlib.contextmanager
def new_spool(spool: str) -> Iterator[SpoolWriter]:
    """A writer whose file becomes `spool` in one piece if the context ends without an error."""
    with contextlib.ExitStack() as stack:
        if storage.is_local(spool):
            target = storage.local_path(spool)
            file = target.with_name(f"{target.name}.{os.getpid()}.partial")
            stack.callback(file.unlink, missing_ok=True)
        else:
            file = stack.enter_context(temporary_folder()) / "spool.tar"
        writer = SpoolWriter(file)
        stack.callback(writer.close)
        yield writer
        if storage.is_local(spool):
            file.replace(target)
        else:
            storage.write_bytes(spool, file.read_bytes())


@contextlib.contextmanager
def open_spool(spool: str) -> Iterator["SpoolReader"]:
    """Reads a spool, which is fetched first if it lies on object storage.

    Raises:
        UserError: it is damaged.
    """
    with contextlib.ExitStack() as stack:
        if storage.is_local(spool):
            file = storage.local_path(spool)
        else:
            file = stack.enter_context(temporary_folder()) / "spool.tar"
            storage.fetch(spool, file)
        try:
            reader = SpoolReader(stack.enter_context(tarfile.open(file, mode="r:")))
        except (tarfile.TarError, ValueError, KeyError) as error:
            raise UserError(
                f"{spool} is damaged ({error}); delete it and run the same command again"
            ) from error
        yield reader


def open_spools(
    jobs: Iterable[VideoJob],
) -> Generator[tuple[VideoJob, "SpoolReader"], None, None]:
    """Each job with its spool, which stays open until the next is asked for.

    From object storage a few are fetched ahead at a time, so the next few of `jobs` are taken
    before they are needed. Close it to end early.

    Raises:
        UserError: a spool is damaged; besides, whatever `jobs` raises.
    """
    pending: deque[tuple[VideoJob, Future[_OpenSpool]]] = deque()
    with ThreadPoolExecutor(_FETCHED_AHEAD, thread_name_prefix="spool") as pool:
        try:
            for job in jobs:
                pending.append((job, pool.submit(_opened, job.spool)))
                if storage.is_local(job.spool) or len(pending) > _FETCHED_AHEAD:
                    yield from _first(pending)
            while pending:
                yield from _first(pending)
        finally:
            for _, future in pending:
                if not future.cancel():
                    with contextlib.suppress(DistganError, OSError), future.result().stack:
                        pass


class _OpenSpool(NamedTuple):
    stack: contextlib.ExitStack
    """Closes it."""
    reader: "SpoolReader"


def _opened(spool: str) -> _OpenSpool:
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(open_spool(spool))
        return _OpenSpool(stack.pop_all(), reader)


def _first(
    pending: deque[tuple[VideoJob, "Future[_OpenSpool]"]],
) -> Iterator[tuple[VideoJob, "SpoolReader"]]:
    job, future = pending.popleft()
    opened = future.result()
    with opened.stack:
        yield job, opened.reader


class SpoolReader:
    """What became of a video, and its samples."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        *self._members, last = tar.getmembers() or [tarfile.TarInfo("nothing")]
        if last.name != _OUTCOME_NAME:
            raise tarfile.ReadError("it ends too early")
        self.outcome = VideoOutcome.from_dict(json.loads(self._content(last)))

    def samples(self) -> Iterator[tuple[str, bytes, bytes]]:
        """In order: (key, text of KEY.json, the clip member)."""
        for facts, clip in zip(self._members[::2], self._members[1::2], strict=True):
            yield facts.name.removesuffix(".json"), self._content(facts), self._content(clip)

    def _content(self, member: tarfile.TarInfo) -> bytes:
        file = self._tar.extractfile(member)
        assert file is not None, "a spool holds files only"
        return file.read()
