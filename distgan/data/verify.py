"""`launch.py data verify`: holds a data set against its manifest, to the last clip."""

import contextlib
from collections import Counter
from functools import partial

from tqdm import tqdm

from distgan import storage
from distgan.buffers import Bytes
from distgan.data.clip_formats import decode
from distgan.data.damage import EXPLANATIONS, ShardDamage
from distgan.data.journal import REPORT_NAME
from distgan.data.manifest import ClipSpec, Manifest, read_manifest
from distgan.data.prepare_report import digest_of_inputs
from distgan.data.shard_reader import read_shard
from distgan.data.workers import in_processes
from distgan.errors import TooLargeError
from distgan.strict_json import parse_object


def verify(
    folder: str, *, processes: int = 0, show_progress: bool = True
) -> tuple[Manifest, list[str]]:
    """The manifest, and a line for each problem: none if the data set is sound.

    Checks every shard's presence, length, sha256 and samples; every clip's crc32; that each one
    decodes to the manifest's size and number of frames; that no other shards lie there; and that
    prepare's report names the videos that the manifest was made of.

    Args:
        processes: that read and decode; 0 means one a CPU core.

    Raises:
        UserError: there is no manifest, or something may not be read.
        StorageError: object storage failed for longer than `storage.retry_seconds`.
    """
    manifest, _ = read_manifest(folder)
    problems = _problems_of_manifest(manifest) + _problems_of_report(folder, manifest)
    results = in_processes(
        partial(check_shard, folder, manifest), range(len(manifest.shards)), processes=processes
    )
    with (
        contextlib.closing(results),
        tqdm(
            total=len(manifest.shards), desc="verify", unit="shard", disable=not show_progress
        ) as progress,
    ):
        for found in results:
            problems += found
            progress.update()
            progress.set_postfix(problems=len(problems), refresh=False)
    named = {entry.name for entry in manifest.shards}
    others = [name for name in storage.list_names(folder) if name.endswith(".tar")]
    problems += [
        f"{name}: lies in the folder, but the manifest does not name it"
        for name in others
        if name not in named
    ]
    return manifest, problems


def check_shard(folder: str, manifest: Manifest, index: int) -> list[str]:
    """A line for each problem of one shard, in a worker process or here."""
    entry = manifest.shards[index]
    shard = read_shard(folder, manifest, index, check_each=True)
    problems: list[str] = []
    if shard.damage is not None:
        problems.append(f"{entry.name}: {shard.damage.problem}; copy it again, or prepare again")
        problems += _damaged_samples(manifest, shard.damage)
    for key, clip, facts in zip(entry.keys, shard.clips, shard.facts, strict=True):
        reason = "" if clip is None else _reason_against(clip, manifest.clip)
        if reason:
            problems.append(f"{entry.name}: {key}: {reason}")
        if facts is not None and not _is_json_object(facts):
            problems.append(f"{entry.name}: {key}: its facts ({key}.json) are no JSON object")
    if shard.damage is None:  # of a damaged shard, what it should hold is problem enough
        problems += [
            f"{entry.name}: {name}: the manifest does not list it" for name in shard.unlisted
        ]
    return problems + [f"{entry.name}: {problem}" for problem in shard.odd]


def _damaged_samples(manifest: Manifest, damage: ShardDamage) -> list[str]:
    """A line a sample, but none where the shard's own line says it of all of them."""
    if {cause for _, cause in damage.samples} <= {"shard_missing", "shard_swapped"}:
        return []
    entry = manifest.shards[damage.shard]
    return [
        f"{entry.name}: {entry.keys[index]}: {EXPLANATIONS[cause]}"
        for index, cause in damage.samples
    ]


def _reason_against(clip: Bytes, spec: ClipSpec) -> str:
    """Why a clip is not what the manifest says; empty if it is."""
    try:
        found = decode(clip, spec.clip_format).shape
    except ValueError as error:
        return f"does not decode ({error})"
    wanted = (spec.stored_frames, spec.resolution, spec.resolution, 3)
    if found == wanted:
        return ""
    return (
        f"has {found[0]} frames of {found[2]}x{found[1]} pixels instead of {wanted[0]} of "
        f"{wanted[2]}x{wanted[1]}"
    )


def _is_json_object(text: bytes) -> bool:
    try:
        parse_object(text)
    except ValueError:
        return False
    return True


def _problems_of_report(folder: str, manifest: Manifest) -> list[str]:
    """What is wrong with prepare's line for each video, which indexed data sets don't have."""
    wanted = manifest.prepare.get("inputs_sha256")
    if wanted is None:
        return []
    remedy = "copy it again, or prepare again"
    try:
        lines = storage.read_bytes(storage.join(folder, REPORT_NAME)).splitlines()
        videos = [parse_object(line) for line in lines]
        found = digest_of_inputs((video["video"], video["sha256"]) for video in videos)
    except FileNotFoundError:
        return [f"{REPORT_NAME}: is missing; {remedy}"]
    except (ValueError, TypeError, KeyError, TooLargeError):
        return [f"{REPORT_NAME}: is damaged; {remedy}"]
    if found == wanted:
        return []
    return [f"{REPORT_NAME}: names other videos than the manifest was made of; {remedy}"]


def _problems_of_manifest(manifest: Manifest) -> list[str]:
    """What does not fit together within the manifest itself."""
    names = Counter(entry.name for entry in manifest.shards)
    keys = Counter(key for entry in manifest.shards for key in entry.keys)
    problems = [
        f"{n}: the manifest names it {count} times" for n, count in names.items() if count > 1
    ]
    problems += [
        f"manifest.json: {count} samples have the key {key}"
        for key, count in keys.items()
        if count > 1
    ]
    if not manifest.samples:
        problems.append("manifest.json: it lists no samples")
    return problems
