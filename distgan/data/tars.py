"""Members of a tar, also of one that may be damaged.

`tarfile` ends without a word at the first header that it can't read. `read_members` goes on behind
it, and the caller learns that something was skipped. `plain_members` is for tars that a digest
vouches for, which most are: `tarfile` takes longer for a header than the digest for a small clip.
"""

import re
import tarfile
from typing import Any, NamedTuple

from distgan.buffers import Bytes

_BLOCK, _CHUNK = tarfile.BLOCKSIZE, 1 << 20
_TYPE = 156
_DESCRIBING = b"LKNxgX"
"""Types of headers that say something of the next one: long names, and what POSIX calls pax."""
_MOST_IN_A_CHAIN = 8
_MOST_DAMAGED_PLACES = 1000
"""Of a tar, after which the rest is lost: looking for more could take for ever."""
_MAGIC, _MAGIC_OFFSET = re.compile(rb"ustar"), 257
_PLAIN_MAGIC = b"ustar\x0000"
_ONLY_A_TIME = re.compile(rb"\d+ mtime=\d+(\.\d*)?\n")
"""The extended header that webdataset's writer puts before each member."""


class TarContents(NamedTuple):
    members: dict[str, memoryview]
    """Plain files by name; links, folders, sparse files and half members are left out. They are
    parts of the tar's bytes, not copies."""
    damaged_at: int | None
    """First byte of the first place that is no tar (or where its end is missing); None if whole."""
    odd: tuple[str, ...] = ()
    """What prepare never writes, in words: links, devices, names that come twice or lead outside.
    Nothing is ever unpacked or followed, but who wrote them meant no good."""


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
            is_end = _closing_zeros(data) <= place <= len(data) - _BLOCK
            return members if is_end else None
        size = _plain_size(header)
        start = place + _BLOCK
        if size is None or start + size > len(data):
            return None
        if header[_TYPE] == tarfile.REGTYPE[0]:
            name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
            if name in members or not is_plain_name(name):
                return None
            members[name] = data[start : start + size]
        elif not _ONLY_A_TIME.fullmatch(data[start : start + size]):
            return None
        place = start + size + -size % _BLOCK
    return None


def _plain_size(header: bytes) -> int | None:
    """Bytes of the member, or of the extended header; None for what isn't plain, or damaged."""
    if header[_TYPE] not in b"0x" or header[257:265] != _PLAIN_MAGIC or header[345]:
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
    odd: list[str] = []
    damaged_at: int | None = None
    start, zeros = 0, _closing_zeros(data)
    for _ in range(_MOST_DAMAGED_PLACES):
        if start >= len(data):
            break
        end = _read_from(data, start, members, odd)
        if zeros <= end <= len(data) - _BLOCK:
            return TarContents(members, damaged_at, tuple(odd))
        damaged_at = end if damaged_at is None else damaged_at
        start = _next_header(data, end + _BLOCK)
    return TarContents(members, start if damaged_at is None else damaged_at, tuple(odd))


def is_plain_name(name: str) -> bool:
    """Whether the name of a member, or the key of a sample, leads only below a folder."""
    parts = name.split("/")
    return bool(name) and name.isprintable() and parts[0] != "" and ".." not in parts


def _read_from(data: memoryview, start: int, members: dict[str, memoryview], odd: list[str]) -> int:
    """Adds members from the header at `start` on; returns where the first unreadable one begins."""
    file: Any = _File(data, start)
    end = start
    if _is_chain(data, start):
        return start
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while not _is_chain(data, tar.offset) and (member := tar.next()) is not None:
                past = member.offset_data + member.size
                if member.size < 0 or past > len(data):
                    break  # cut off, or a size that would lead backwards
                problem = _oddity(member, members)
                if problem:
                    odd.append(f"{member.name[:80]!r} {problem}")
                if member.isreg() and not member.issparse():
                    members[member.name] = data[member.offset_data : past]
                end = past + -past % _BLOCK
    except (tarfile.TarError, ValueError, EOFError, OverflowError, LookupError):
        pass  # the caller sees it: `end` is not the end of the tar
    return end


def _is_chain(data: memoryview, start: int) -> bool:
    """Whether headers that only describe another header follow each other without end: `tarfile`
    reads each with a call within a call."""
    for _ in range(_MOST_IN_A_CHAIN):
        header = bytes(data[start : start + _BLOCK])
        if len(header) < _BLOCK or header[_TYPE] not in _DESCRIBING:
            return False
        try:
            size = max(tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size, 0)
        except (tarfile.TarError, ValueError):
            return False
        start += _BLOCK + size + -size % _BLOCK
    return True


def _oddity(member: tarfile.TarInfo, members: dict[str, memoryview]) -> str:
    if member.isdir():
        return ""
    if not member.isreg() or member.issparse():
        return "is no plain file"
    if not is_plain_name(member.name):
        return "has a name that leads outside, or is no text"
    return "comes twice" if member.name in members else ""


def _closing_zeros(data: memoryview) -> int:
    """First byte of the blocks of zeros at the end, of which there may be none."""
    past = len(data)
    while past > 0:
        chunk = bytes(data[max(past - _CHUNK, 0) : past])
        if kept := chunk.rstrip(b"\0"):
            past += len(kept) - len(chunk)
            break
        past -= len(chunk)
    return past + -past % _BLOCK


def _next_header(data: memoryview, start: int) -> int:
    """The next block that looks like a header and has the right checksum; else len(data)."""
    for found in _MAGIC.finditer(data, start):
        block = found.start() - _MAGIC_OFFSET
        if block >= start and block % _BLOCK == 0:
            header = bytes(data[block : block + _BLOCK])
            try:
                tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                return block
            except (tarfile.TarError, ValueError):
                pass  # damaged as well
    return len(data)
