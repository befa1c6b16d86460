"""Members of tars: the fast way gives what the careful one gives, which gives what tarfile does."""

import io
import tarfile

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from distgan.data.tars import plain_members, read_members

NAMES = st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=60)
CONTENTS = st.one_of(st.binary(max_size=3), st.integers(0, 3000).map(lambda size: b"x" * size))
KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 12 + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]
)
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def make_tar(members: list[tuple[str, bytes, bytes, float]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content, kind, mtime in members:
            member = tarfile.TarInfo(name)
            member.type, member.mtime = kind, mtime  # type: ignore[assignment]
            member.size = len(content) if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def by_tarfile(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = [member for member in tar if member.isreg()]
        return {member.name: tar.extractfile(member).read() for member in files}  # type: ignore[union-attr]


@given(
    st.lists(st.tuples(NAMES, CONTENTS, KINDS, st.sampled_from([0, 7, 1.5])), max_size=6), FORMATS
)
def test_both_ways_give_what_tarfile_gives(
    members: list[tuple[str, bytes, bytes, float]], form: int
) -> None:
    data = make_tar(members, form)
    expected, careful = by_tarfile(data), read_members(data)
    assert careful.damaged_at is None and careful.members == expected
    assert plain_members(data) in (None, expected)


@given(st.data())
def test_a_damaged_tar_is_not_plain_or_reads_as_by_tarfile(data: st.DataObject) -> None:
    tar = bytearray(make_tar([(f"{n}.npy", b"abc" * n, tarfile.REGTYPE, 0) for n in range(3)], 0))
    tar[data.draw(st.integers(0, len(tar) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    tar = tar[: data.draw(st.sampled_from([len(tar)] * 3 + [512, 700, 1024, 5000]))]
    careful = read_members(bytes(tar))
    if careful.damaged_at is not None:
        assert plain_members(bytes(tar)) is None
    else:
        assert plain_members(bytes(tar)) in (None, careful.members)


@pytest.mark.parametrize("mtime", [0, 0.0, 1700000000.5, None])
def test_shards_of_webdataset_are_plain(mtime: float | None) -> None:
    """Ours, and those of its writer as others call it; else each would be read the slow way."""
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False, mtime=mtime) as writer:
        for number in range(3):
            writer.write({"__key__": f"k{number}", "json": b"{}", "npy": bytes(600 * number)})
    assert plain_members(buffer.getvalue()) == by_tarfile(buffer.getvalue())
    assert len(by_tarfile(buffer.getvalue())) == 6
