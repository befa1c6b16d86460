"""`launch.py data index`: writes the manifest of shards that have none."""

import contextlib
import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

from tqdm import tqdm

import distgan
from distgan import storage
from distgan.buffers import Bytes
from distgan.data.clip_formats import ClipFormat, decode
from distgan.data.manifest import (
    MANIFEST_NAME,
    MOST_SHARD_BYTES,
    UNFINISHED_NAME,
    ClipSpec,
    Manifest,
    ShardEntry,
    is_shard_name,
    write_manifest,
)
from distgan.data.tars import read_members
from distgan.data.workers import in_processes
from distgan.errors import UserError
from distgan.strict_json import parse_object

ENDINGS: tuple[ClipFormat, ...] = get_args(ClipFormat)


@dataclass(frozen=True)
class _IndexedShard:
    entry: ShardEntry
    spec: ClipSpec
    """Of all its clips."""


def index(folder: str, *, processes: int = 0, show_progress: bool = True) -> Manifest:
    """Reads all shard-*.tar in a folder and writes the manifest that describes them.

    Every clip must decode, and all must have one format, size and number of frames. Digests are
    taken of what is there now, so damage that came before and still decodes is not found.

    Args:
        processes: that read and decode; 0 means one a CPU core.

    Raises:
        UserError: there is a manifest already, or the shards can't make a data set.
        StorageError: object storage failed for longer than `storage.retry_seconds`.
    """
    names = _shard_names(folder)
    results = in_processes(partial(_index_shard, folder), names, processes=processes)
    indexed: list[_IndexedShard] = []
    with (
        contextlib.closing(results),
        tqdm(total=len(names), desc="index", unit="shard", disable=not show_progress) as progress,
    ):
        for shard in results:
            indexed.append(shard)
            progress.update()
    manifest = Manifest(
        clip=_common_spec(folder, indexed),
        shards=tuple(shard.entry for shard in indexed),
        prepare={"version": distgan.__version__, "indexed": True},
        counts={"clips": sum(shard.entry.samples for shard in indexed)},
        dropped={},
    )
    write_manifest(folder, manifest)
    return manifest


def _shard_names(folder: str) -> list[str]:
    names = storage.list_names(folder)
    if MANIFEST_NAME in names:
        raise UserError(
            f"{folder} has a manifest already; check it with `launch.py data verify --data "
            f"{folder}`, or delete {MANIFEST_NAME} first if it is wrong"
        )
    if UNFINISHED_NAME in names:
        raise UserError(
            f"{folder} holds an unfinished data set; run the `launch.py prepare` that began it "
            "again, and it goes on"
        )
    shards = [name for name in names if is_shard_name(name)]
    if not shards:
        raise UserError(
            f"no shards in {folder}: name a folder that holds tars named shard-*.tar, or make a "
            f"data set of videos with `launch.py prepare --input VIDEOS --output {folder}`"
        )
    others = [name for name in names if name.endswith(".tar") and name not in shards]
    if others:
        raise UserError(
            f"{storage.join(folder, others[0])} is not named shard-*.tar, as the {len(shards)} "
            f"others there are ({len(others)} such); rename it so, or take it out of the folder"
        )
    return shards


def _index_shard(folder: str, name: str) -> _IndexedShard:
    """Describes one shard, in a worker process or here."""
    path = storage.join(folder, name)
    try:
        data = storage.read_large(path, max_bytes=MOST_SHARD_BYTES)
    except OSError as error:
        raise UserError(f"can't read the shard {path}: {error.strerror or error}") from error
    members, damaged_at, odd = read_members(data)
    if damaged_at is not None:
        raise UserError(
            f"the shard {path} is damaged at byte {damaged_at} or ends too early; copy it again, "
            "or take it out of the folder"
        )
    if odd:
        raise UserError(
            f"the shard {path} holds what no shard needs: {odd[0]}; take it out of the folder"
        )
    clips = {n: m for n, m in members.items() if n.endswith(tuple(f".{e}" for e in ENDINGS))}
    keys, endings = [n.rpartition(".")[0] for n in clips], {n.rpartition(".")[2] for n in clips}
    if len(endings) != 1 or len(set(keys)) != len(keys):
        found = f"members ending in {', '.join(sorted(endings))}" if endings else "no clips"
        raise UserError(
            f"the shard {path} holds {found}; a sample is KEY.mp4 or KEY.npy, the same in all "
            "shards, and optionally KEY.json"
        )
    (ending,) = (e for e in ENDINGS if e in endings)
    rates = [
        _frame_rate(f"{path}: {key}.json", bytes(members.get(f"{key}.json", b"{}"))) for key in keys
    ]
    specs = [
        _spec_of(f"{path}: {clip_name}", clip, ending, rate)
        for (clip_name, clip), rate in zip(clips.items(), rates, strict=True)
    ]
    return _IndexedShard(
        ShardEntry(
            name=name,
            samples=len(keys),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            keys=tuple(keys),
            crc32=tuple(zlib.crc32(clip) for clip in clips.values()),
        ),
        _same_for_all([(f"{path}: {n}", spec) for n, spec in zip(clips, specs, strict=True)]),
    )


def _spec_of(place: str, clip: Bytes, ending: ClipFormat, frame_rate_hz: float) -> ClipSpec:
    try:
        frames, height, width, _ = decode(clip, ending).shape
    except ValueError as error:
        raise UserError(
            f"{place} does not decode ({error}); take its shard out of the folder"
        ) from error
    if height != width:
        raise UserError(
            f"{place} has {width}x{height} pixels, but clips must be square; make a data set of "
            "the videos with `launch.py prepare`"
        )
    return ClipSpec(
        resolution=width, stored_frames=frames, frame_rate_hz=frame_rate_hz, clip_format=ending
    )


def _frame_rate(place: str, text: bytes) -> float:
    """What a sample's facts say; 0 if they don't. Raises `UserError` if they are none."""
    try:
        facts = parse_object(text)
    except ValueError as error:
        raise UserError(
            f"{place} is no JSON object ({error}); take its shard out of the folder"
        ) from error
    try:
        rate = float(facts.get("frame_rate_hz", 0))
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return rate if math.isfinite(rate) and rate > 0 else 0.0


def _common_spec(folder: str, shards: Sequence[_IndexedShard]) -> ClipSpec:
    return _same_for_all([(f"{folder}/{shard.entry.name}", shard.spec) for shard in shards])


def _same_for_all(specs: Sequence[tuple[str, ClipSpec]]) -> ClipSpec:
    """The one specification of all clips; rates may differ, which 0 stands for.

    Raises:
        UserError: they differ in format, size or number of frames.
    """
    first_place, first = specs[0]
    for place, spec in specs[1:]:
        for key in ("clip_format", "resolution", "stored_frames"):
            here, there = getattr(spec, key), getattr(first, key)
            if here != there:
                raise UserError(
                    f"{place} has {key}={here}, but {first_place} has {there}; clips of one data "
                    "set must be alike: make it of the videos with `launch.py prepare`"
                )
    rates = {spec.frame_rate_hz for _, spec in specs}
    return first if len(rates) == 1 else first.model_copy(update={"frame_rate_hz": 0.0})
