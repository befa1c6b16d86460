"""Writes and reads shards: WebDataset tars of `KEY.json` and one clip member per sample."""

import hashlib
import io
import json
import tarfile
import zlib
from typing import Any

import webdataset

from distgan import storage
from distgan.data.clip_formats import ClipFormat
from distgan.data.manifest import ShardEntry
from distgan.errors import UserError

Facts = dict[str, Any]


class DamagedShardError(UserError):
    """A shard is missing, or its bytes differ from what the manifest says."""


class ShardWriter:
    """Collects samples into shards of about `shard_bytes` and writes each one whole.

    A shard is put together in memory (webdataset's own writer with an `opener` leaves files open)
    and reaches storage in one piece. Modification times are 0: equal samples give equal bytes.
    """

    def __init__(self, folder: str, clip_format: ClipFormat, shard_bytes: float) -> None:
        self._folder = folder
        self._clip_format = clip_format
        self._shard_bytes = shard_bytes
        self._keys: list[str] = []
        self._crc32: list[int] = []
        self._buffer = io.BytesIO()
        self._tar: Any = None
        self.entries: list[ShardEntry] = []

    def write(self, key: str, facts: bytes, clip: bytes) -> None:
        """Adds a sample; `facts` is the text of `KEY.json`."""
        if self._tar is None:
            self._buffer = io.BytesIO()
            self._tar = webdataset.TarWriter(self._buffer, encoder=False, mtime=0.0)
        self._tar.write({"__key__": key, "json": facts, self._clip_format: clip})
        self._keys.append(key)
        self._crc32.append(zlib.crc32(clip))
        if self._buffer.tell() >= self._shard_bytes:
            self.finish()

    def finish(self) -> None:
        """Writes the shard in hand, if there is one."""
        if self._tar is None:
            return
        self._tar.close()
        data = self._buffer.getvalue()
        entry = ShardEntry(
            name=f"shard-{len(self.entries):06d}.tar",
            samples=len(self._keys),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            keys=tuple(self._keys),
            crc32=tuple(self._crc32),
        )
        storage.write_bytes(storage.join(self._folder, entry.name), data)
        self.entries.append(entry)
        self._tar, self._keys, self._crc32 = None, [], []
        self._buffer = io.BytesIO()


def read_shard(
    folder: str, entry: ShardEntry, clip_format: ClipFormat
) -> list[tuple[Facts, bytes]]:
    """All samples of a shard, in its order: (facts, the clip member's bytes).

    The whole shard is checked before anything in it is read; only the two named members of each
    sample are looked at, and nothing is unpickled.

    Raises:
        DamagedShardError: the shard is missing or differs from `entry`.
    """
    path = storage.join(folder, entry.name)
    try:
        data = storage.read_bytes(
            path, is_right=lambda data: hashlib.sha256(data).hexdigest() == entry.sha256
        )
    except FileNotFoundError as error:
        raise _damaged(path, "is missing") from error
    if len(data) != entry.bytes:
        raise _damaged(path, f"has {len(data)} bytes instead of {entry.bytes}")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _damaged(path, "has another sha256 than the manifest says")
    try:
        members = _members(data)
        samples = [(members[f"{key}.json"], members[f"{key}.{clip_format}"]) for key in entry.keys]
        facts = [json.loads(text) for text, _ in samples]
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise _damaged(path, f"lacks samples that the manifest lists ({error})") from error
    if len(members) != 2 * len(entry.keys) or entry.samples != len(entry.keys):
        raise _damaged(path, "doesn't hold exactly the samples that the manifest lists")
    if any(zlib.crc32(clip) != crc for (_, clip), crc in zip(samples, entry.crc32, strict=True)):
        raise _damaged(path, "has a clip whose crc32 differs from the manifest's")
    return [(fact, clip) for fact, (_, clip) in zip(facts, samples, strict=True)]


def _members(data: bytes) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                raise ValueError(f"{member.name} is not a file")
            members[member.name] = file.read()
    return members


def _damaged(path: str, what: str) -> DamagedShardError:
    return DamagedShardError(
        f"the shard {path} {what}; copy it again from where it was prepared, or prepare the data "
        "set again into an empty folder"
    )
