"""Reads shards whole, finds out what is damaged in them, and saves the rest.

Imports neither torch nor webdataset, so that worker processes start fast.
"""

import hashlib
import zlib
from dataclasses import dataclass

from distgan import storage
from distgan.buffers import Bytes
from distgan.data.damage import Cause, ShardDamage
from distgan.data.manifest import Manifest, ShardEntry
from distgan.data.shard_cache import ShardCache
from distgan.data.tars import TarContents, plain_members, read_members
from distgan.errors import TooLargeError, UserError


@dataclass(frozen=True)
class Shard:
    """What could be read of a shard, by index of the sample."""

    clips: tuple[Bytes | None, ...]
    """The clip members that a digest vouches for; None where a sample is damaged. They are parts of
    the shard's bytes, not copies."""
    facts: tuple[bytes | None, ...]
    """The text of each sample's `KEY.json`; None where there is none."""
    damage: ShardDamage | None
    unlisted: tuple[str, ...] = ()
    """Clip members that the manifest doesn't list."""
    odd: tuple[str, ...] = ()
    """See `TarContents.odd`; or what is no tar although the manifest vouches for it."""


def read_shard(
    folder: str,
    manifest: Manifest,
    index: int,
    cache: ShardCache | None = None,
    *,
    check_each: bool = False,
) -> Shard:
    """The samples of a shard, each checked on its own where the shard as a whole is not right.

    Only the named members of each sample are looked at, and nothing is unpickled.

    Args:
        cache: keeps what object storage gave right.
        check_each: holds each sample's crc32 against the manifest also where the shard's sha256 is
            right and so vouches for all of them: only the manifest itself can then be wrong.

    Raises:
        UserError: the shard is there but may not be read.
        StorageError: object storage failed for longer than `storage.retry_seconds`.
    """
    entry = manifest.shards[index]
    path = storage.join(folder, entry.name)
    digest = ""

    def is_right(data: Bytes) -> bool:
        nonlocal digest
        digest = hashlib.sha256(data).hexdigest()
        return digest == entry.sha256

    try:
        most = 2 * max(shard.bytes for shard in manifest.shards)
        if cache is None or storage.is_local(path):
            data = storage.read_large(path, is_right=is_right, size=entry.bytes, max_bytes=most)
        else:
            data = cache.read(path, entry.sha256, is_right, size=entry.bytes, max_bytes=most)
    except FileNotFoundError:
        return _nothing_of(index, entry, "is missing", "shard_missing")
    except TooLargeError:  # by far: its name is all that it has of a shard
        problem = f"has far more than the {entry.bytes} bytes of the manifest"
        return _nothing_of(index, entry, problem, "shard_swapped")
    except OSError as error:
        raise UserError(
            f"can't read the shard {path}: {error.strerror or error}; put the shard itself there, "
            "readable for this user: copy it again from where it was prepared"
        ) from error
    digest = digest or hashlib.sha256(data).hexdigest()  # local files are not judged on the way
    return _check(data, digest, manifest, index, check_each=check_each)


def _nothing_of(index: int, entry: ShardEntry, problem: str, cause: Cause) -> Shard:
    """A shard of which no sample is there."""
    every = tuple((place, cause) for place in range(entry.samples))
    nothing = (None,) * entry.samples
    return Shard(nothing, nothing, ShardDamage(index, problem, every))


def _check(data: Bytes, digest: str, manifest: Manifest, index: int, *, check_each: bool) -> Shard:
    entry, ending = manifest.shards[index], manifest.clip.clip_format
    problem, other_cause = _problem_of_bytes(len(data), digest, manifest, entry)
    plain = None if problem else plain_members(data)
    contents = read_members(data) if plain is None else TarContents(plain, None)
    members = contents.members
    whole = contents.damaged_at is None or bool(problem)  # that says it already
    check_each = check_each or bool(problem)
    clips: list[Bytes | None] = []
    damaged: list[tuple[int, Cause]] = []
    for place, (key, crc32) in enumerate(zip(entry.keys, entry.crc32, strict=True)):
        clip = members.get(f"{key}.{ending}")
        if clip is None:
            damaged.append((place, other_cause))
        elif check_each and zlib.crc32(clip) != crc32:
            damaged.append((place, "crc32"))
            clip = None
        clips.append(clip)
    if damaged and not problem:
        problem = "does not hold the samples that the manifest lists"
    listed = {f"{key}.{ending}" for key in entry.keys}
    return Shard(
        clips=tuple(clips),
        facts=tuple(_text(members.get(f"{key}.json")) for key in entry.keys),
        damage=ShardDamage(index, problem, tuple(damaged)) if problem else None,
        unlisted=tuple(n for n in members if n.endswith(f".{ending}") and n not in listed),
        odd=contents.odd if whole else (f"is no tar from byte {contents.damaged_at} on",),
    )


def _text(member: memoryview | None) -> bytes | None:
    return None if member is None else bytes(member)


def _problem_of_bytes(
    length: int, digest: str, manifest: Manifest, entry: ShardEntry
) -> tuple[str, Cause]:
    """What is wrong with the shard as a whole, if anything, and why a sample may not be in it."""
    if digest == entry.sha256 and length == entry.bytes:
        return "", "sample_missing"
    for other in manifest.shards:
        if other.sha256 == digest and other.name != entry.name:
            return f"holds what the manifest calls {other.name}", "shard_swapped"
    if length != entry.bytes:
        problem = f"has {length} bytes instead of {entry.bytes}"
        return problem, "shard_truncated" if length < entry.bytes else "sample_missing"
    return "has another sha256 than the manifest says", "sample_missing"
