"""Members of a tar, also of one that may be damaged.

`tarfile` ends without a word at the first header that it can't read. `read_members` goes on behind
it, and the caller learns that something was skipped. `plain_members` is for tars that a digest
vouches for, which most are: `tarfile` takes longer for a header than the digest for a small clip.
"""

import re
import tarfile
from typing import Any, NamedTuple

from distgan.buffers import Bytes

_BLOCK = tarfile.BLOCKSIZE
_MAGIC, _MAGIC_OFFSET = b"ustar", 257
_PLAIN_MAGIC = b"ustar\x0000"
_ONLY_A_TIME = re.compile(rb"\d+ mtime=\d+(\.\d*)?\n")
"""The extended header that webdataset's writer puts before each member."""


class TarContents(NamedTuple):
    members: dict[str, memoryview]
    """Plain files by name; links, folders, sparse files and half members are left out. They are
    parts of the tar's bytes, not copies."""
    damaged_at: int | None
    """First byte of the first place that is no tar (or where its end is missing); None if whole."""


class _File:
    """What `tarfile` needs of a file, over bytes that `io.BytesIO` would copy."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self._place = data, place

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> int:
        self._place = place
        return place

    def read(self, size: int) -> bytes:
        read = bytes(self._data[self._place : self._place + size])
        self._place += len(read)
        return read


def plain_members(tar: Bytes) -> dict[str, memoryview] | None:
    """As `read_members` of a whole tar, for tars of nothing but files with short names.

    None: this one is not like that, or damaged; ask `read_members`.
    """
    data = memoryview(tar)
    members: dict[str, memoryview] = {}
    place = 0
    while place + _BLOCK <= len(data):
        header = bytes(data[place : place + _BLOCK])
        if not header[0]:
            return members if _is_end(data, place) else None
        size = _plain_size(header)
        start = place + _BLOCK
        if size is None or start + size > len(data):
            return None
        if header[156:157] == tarfile.REGTYPE:
            name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
            members[name] = data[start : start + size]
        elif not _ONLY_A_TIME.fullmatch(data[start : start + size]):
            return None
        place = start + size + -size % _BLOCK
    return None


def _plain_size(header: bytes) -> int | None:
    """Bytes of the member, or of the extended header; None for what isn't plain, or damaged."""
    if header[156] not in b"0x" or header[257:265] != _PLAIN_MAGIC or header[345]:
        return None
    try:
        size, check = (
            int(field.partition(b"\0")[0], 8) for field in (header[124:136], header[148:156])
        )
    except ValueError:
        return None
    right = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    return size if check == right and size >= 0 else None


def read_members(tar: Bytes) -> TarContents:
    """All plain files that can be found in the bytes of a tar, damaged or not."""
    data = memoryview(tar)
    members: dict[str, memoryview] = {}
    damaged_at: int | None = None
    start = 0
    while start < len(data):
        end = _read_from(data, start, members)
        if _is_end(data, end):
            return TarContents(members, damaged_at)
        damaged_at = end if damaged_at is None else damaged_at
        start = _next_header(data, end + _BLOCK)
    return TarContents(members, start if damaged_at is None else damaged_at)


def _read_from(data: memoryview, start: int, members: dict[str, memoryview]) -> int:
    """Adds members from the header at `start` on; returns where the first unreadable one begins."""
    file: Any = _File(data, start)
    end = start
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                past = member.offset_data + member.size
                if member.size < 0 or past > len(data):
                    break  # cut off, or a size that would lead backwards
                is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                if is_plain and not member.issparse():
                    members[member.name] = data[member.offset_data : past]
                end = past + -past % _BLOCK
    except (tarfile.TarError, ValueError, EOFError, OverflowError):
        pass  # the caller sees it: `end` is not the end of the tar
    return end


def _is_end(data: memoryview, place: int) -> bool:
    """Whether nothing but the zeros that close a tar follows, at least one block of them."""
    return len(data) >= place + _BLOCK and not bytes(data[place:]).strip(b"\0")


def _next_header(data: memoryview, start: int) -> int:
    """The next block that looks like a header and has the right checksum; else len(data)."""
    tar = bytes(data)
    found = tar.find(_MAGIC, start)
    while found >= 0:
        block = found - _MAGIC_OFFSET
        if block >= start and block % _BLOCK == 0:
            try:
                tarfile.TarInfo.frombuf(tar[block : block + _BLOCK], "utf-8", "surrogateescape")
                return block
            except tarfile.TarError:
                pass  # damaged as well
        found = tar.find(_MAGIC, found + 1)
    return len(data)
