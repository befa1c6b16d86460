"""Writes shards: WebDataset tars of `KEY.json` and one clip member per sample."""

import hashlib
import io
import zlib
from typing import Any

import webdataset

from distgan import storage
from distgan.data.clip_formats import ClipFormat
from distgan.data.manifest import ShardEntry


class ShardWriter:
    """Collects samples into shards of about `shard_bytes` and writes each one whole.

    A shard is put together in memory (webdataset's own writer with an `opener` leaves files open)
    and reaches storage in one piece. Modification times are 0: equal samples give equal bytes. (A
    whole number: for a fraction, tar needs a second header before each member.)
    """

    def __init__(
        self, folder: str, clip_format: ClipFormat, shard_bytes: float, *, first: int = 0
    ) -> None:
        """`first` is the number of the first shard."""
        self._folder = folder
        self._clip_format = clip_format
        self._shard_bytes = shard_bytes
        self._keys: list[str] = []
        self._crc32: list[int] = []
        self._buffer = io.BytesIO()
        self._tar: Any = None
        self._first = first
        self.entries: list[ShardEntry] = []

    def write(self, key: str, facts: bytes, clip: bytes) -> ShardEntry | None:
        """Adds a sample (`facts` is the text of `KEY.json`); describes the shard it filled."""
        if self._tar is None:
            self._buffer = io.BytesIO()
            self._tar = webdataset.TarWriter(self._buffer, encoder=False, mtime=0)
        self._tar.write({"__key__": key, "json": facts, self._clip_format: clip})
        self._keys.append(key)
        self._crc32.append(zlib.crc32(clip))
        if self._buffer.tell() >= self._shard_bytes:
            return self.finish()
        return None

    def finish(self) -> ShardEntry | None:
        """Writes the shard in hand, if there is one, and describes it."""
        if self._tar is None:
            return None
        self._tar.close()
        data = self._buffer.getvalue()
        entry = ShardEntry(
            name=f"shard-{self._first + len(self.entries):06d}.tar",
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
        return entry

    def close(self) -> None:
        """Drops the shard in hand, if there is one."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None
