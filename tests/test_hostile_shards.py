"""Data sets of somebody who means harm: refused with a message, nothing is run or unpacked."""

import io
import json
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distgan.data.clip_formats import decode, encode
from distgan.data.indexing import index
from distgan.data.manifest import read_manifest
from distgan.data.tars import read_members
from distgan.data.verify import verify
from distgan.errors import DistganError, UserError
from tests.hostile import DEEP, digest, npy, npy_of_objects, pickled, torch_saved
from tests.video_bombs import claims_2_to_the_31_frames, playlist_hls, png_16k

CLIP = encode(np.zeros((6, 8, 8, 3), np.uint8), 8, "npy")
Members = list[tuple[tarfile.TarInfo, bytes]]


def member(name: str, data: bytes = b"", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def with_clip(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Beside a clip that is sound."""
    return tar_of(member("a.npy", CLIP), *members)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target)


def forged_size(size: int) -> bytes:
    """A member whose header claims another size, with the right checksum."""
    data = bytearray(with_clip(member("b.npy", b"x")))
    place = data.index(b"b.npy")
    info = tarfile.TarInfo("b.npy")
    info.size = size
    data[place : place + 512] = info.tobuf(tarfile.GNU_FORMAT)
    return bytes(data)


def chained_long_names() -> bytes:
    """A long name for a long name for a long name ..."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5
    header = info.tobuf(tarfile.GNU_FORMAT)
    return (header + b"name\0".ljust(512, b"\0")) * 5000 + with_clip()


def chained_pax_headers() -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, text = tarfile.XHDTYPE, b"11 size=99\n"
    info.size = len(text)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return (header + text.ljust(512, b"\0")) * 5000 + with_clip()


def many_broken_headers() -> bytes:
    """8 MB, each second block of which looks like a header, and is none."""
    good = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    return (good + b"\1" * 512) * 8192


SHARDS: dict[str, Callable[[Path, Path], bytes]] = {
    "a pickle": lambda mark, _: pickled(mark),
    "a torch file": lambda mark, _: torch_saved(mark),
    "a pickle for a clip": lambda mark, _: tar_of(member("a.npy", pickled(mark))),
    "an array of objects": lambda mark, _: tar_of(member("a.npy", npy_of_objects(mark))),
    "members that a decoder would run": lambda mark, _: tar_of(
        member("a.pkl", pickled(mark)), member("a.pth", torch_saved(mark))
    ),
    "a name that leads out": lambda mark, _: with_clip(member("../../out.npy", CLIP)),
    "a name with a way out within": lambda mark, _: with_clip(member("x/../../out.npy", CLIP)),
    "an absolute name": lambda mark, _: with_clip(member("/tmp/out.npy", CLIP)),
    "a name with a line break": lambda mark, _: with_clip(member("b\n.npy", CLIP)),
    "a link": lambda mark, _: with_clip(link("b.npy", "/etc/passwd")),
    "a hard link": lambda mark, _: with_clip(link("b.npy", "/etc/passwd", tarfile.LNKTYPE)),
    "a device": lambda mark, _: with_clip(member("b.npy", type=tarfile.CHRTYPE, devmajor=1)),
    "a pipe": lambda mark, _: with_clip(member("b.npy", type=tarfile.FIFOTYPE)),
    "a name that comes twice": lambda mark, _: with_clip(member("a.npy", CLIP)),
    "a size over the end": lambda mark, _: forged_size(2**40),
    "a size of 8 exabytes": lambda mark, _: forged_size(2**63 - 1),
    "a negative size": lambda mark, _: forged_size(-(2**40)),
    "long names, one in front of the other": lambda mark, _: chained_long_names(),
    "pax headers, one in front of the other": lambda mark, _: chained_pax_headers(),
    "headers that are none": lambda mark, _: many_broken_headers(),
    "a shape of terabytes": lambda mark, _: tar_of(
        member("a.npy", npy("{'descr':'|u1','fortran_order':False,'shape':(1048576,4096,4096,3)}"))
    ),
    "a negative shape": lambda mark, _: tar_of(
        member("a.npy", npy("{'descr':'|u1','fortran_order':False,'shape':(-1,-1,1,3)}", b"xxx"))
    ),
    "a header of brackets": lambda mark, _: tar_of(member("a.npy", npy("(" * 9000))),
    "a header of signs": lambda mark, _: tar_of(member("a.npy", npy("-" * 9000 + "1"))),
    "a header of code": lambda mark, _: tar_of(
        member("a.npy", npy(f"__import__('pathlib').Path({str(mark)!r}).touch()"))
    ),
    "an npy of another version": lambda mark, _: tar_of(
        member("a.npy", b"\x93NUMPY\3\0" + CLIP[8:])
    ),
    "a clip that claims billions of frames": lambda mark, folder: tar_of(
        member("a.mp4", claims_2_to_the_31_frames(folder).read_bytes())
    ),
    "a playlist for a clip": lambda mark, folder: tar_of(
        member("a.mp4", playlist_hls(folder).read_bytes())
    ),
    "a frame of 16000 x 16000 pixels in a clip of many": lambda mark, folder: tar_of(
        member("a.mp4", png_16k(folder).read_bytes()), member("b.mp4", b"")
    ),
}


@pytest.fixture(autouse=True)
def little_time() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 20


def test_there_are_attacks_enough() -> None:
    assert len(SHARDS) >= 20


@pytest.mark.parametrize("name", SHARDS)
def test_a_hostile_shard_is_refused_and_nothing_in_it_runs(name: str, tmp_path: Path) -> None:
    mark, work, data = tmp_path / "ran", tmp_path / "work", tmp_path / "data"
    work.mkdir()
    data.mkdir()
    (data / "shard-000000.tar").write_bytes(SHARDS[name](mark, work))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"shard-000000\.tar") as raised:
        index(str(data), processes=1, show_progress=False)
    assert len(str(raised.value)) < 1000
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


@pytest.mark.parametrize("name", SHARDS)
def test_a_manifest_that_vouches_for_it_changes_nothing(name: str, tmp_path: Path) -> None:
    """Digests prove who wrote the manifest wrote the shard as well, and no more."""
    mark, work, data = tmp_path / "ran", tmp_path / "work", tmp_path / "data"
    work.mkdir()
    data.mkdir()
    shard = SHARDS[name](mark, work)
    (data / "shard-000000.tar").write_bytes(shard)
    ending = "mp4" if b".mp4" in shard[:512] else "npy"
    found = [n for n in read_members(shard).members if n.endswith(f".{ending}")]
    keys = [n.removesuffix(f".{ending}") for n in found] or ["a"]
    crcs = [zlib.crc32(read_members(shard).members.get(f"{key}.{ending}", b"")) for key in keys]
    entry = {
        "name": "shard-000000.tar", "samples": len(keys), "bytes": len(shard),
        "sha256": digest(shard), "keys": keys, "crc32": crcs,
    }  # fmt: skip
    clip = {"resolution": 8, "stored_frames": 6, "frame_rate_hz": 8, "clip_format": ending}
    manifest = MANIFEST | {"clip": clip, "shards": [entry]}
    (data / "manifest.json").write_text(json.dumps(manifest))
    try:
        _, problems = verify(str(data), processes=1, show_progress=False)
    except DistganError:
        problems = ["refused as a whole"]
    assert problems and not mark.exists()


MANIFEST: dict[str, Any] = {
    "format": "distgan-dataset", "version": 1, "prepare": {}, "counts": {}, "dropped": {},
    "clip": {"resolution": 8, "stored_frames": 6, "frame_rate_hz": 8, "clip_format": "npy"},
    "shards": [],
}  # fmt: skip
ENTRY: dict[str, Any] = {
    "name": "shard-000000.tar", "samples": 1, "bytes": 0, "sha256": "0", "keys": ["a"],
    "crc32": [0],
}  # fmt: skip


def shard_like(**changes: Any) -> bytes:
    return json.dumps(MANIFEST | {"shards": [ENTRY | changes]}).encode()


def clip_like(**changes: Any) -> bytes:
    return json.dumps(MANIFEST | {"clip": MANIFEST["clip"] | changes}).encode()


MANIFESTS = {
    "a name that leads out": shard_like(name="../../etc/x.tar"),
    "an absolute name": shard_like(name="/etc/x.tar"),
    "a name with a zero byte": shard_like(name="x\0.tar"),
    "a name of half a character": shard_like(name="\ud800.tar"),
    "a key that leads out": shard_like(keys=["../../a"]),
    "an absolute key": shard_like(keys=["/etc/a"]),
    "a negative size": shard_like(bytes=-1),
    "fewer samples than keys": shard_like(samples=0),
    "a size of text": shard_like(bytes="rm -rf"),
    "a huge number": shard_like(crc32=[10**400]),
    "a resolution of terabytes": clip_like(resolution=2**40),
    "no frames": clip_like(stored_frames=0),
    "a frame rate that is none": clip_like(frame_rate_hz=float("nan")),
    "an endless frame rate": clip_like(frame_rate_hz=float("inf")),
    "another format": clip_like(clip_format="pkl"),
    "a number of a million digits": b'{"version": ' + b"9" * 1_000_000 + b"}",
    "deep nesting": b'{"prepare": ' + DEEP + b"}",
    "a list": b"[]",
    "nothing": b"",
    "bytes that are no text": b"\xff\xfe{}",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(MANIFESTS[name])
    with pytest.raises(UserError, match=r"manifest\.json") as raised:
        read_manifest(str(tmp_path))
    assert len(str(raised.value)) < 1000


def test_a_pickle_for_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(pickled(tmp_path / "ran"))
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_manifest(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_clip_larger_than_asked_for_is_not_decoded(tmp_path: Path) -> None:
    """The trainer knows what it wants: a frame of other pixels costs it nothing."""
    clip = encode(np.zeros((6, 64, 64, 3), np.uint8), 8, "mp4")
    out = np.empty((6, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="too large"):
        decode(clip, "mp4", range(6), out)
    assert decode(clip, "mp4", range(6)).shape == (6, 64, 64, 3)
