"""`launch.py data show`: the facts of a data set in words, and some of its clips in a picture."""

import numpy as np
from numpy.typing import NDArray

from distgan.data.clip_formats import decode
from distgan.data.damage import EXPLANATIONS
from distgan.data.manifest import Manifest, read_manifest
from distgan.data.prepare_report import summary
from distgan.data.shard_reader import Shard, read_shard
from distgan.errors import UserError
from distgan.pictures import contact_sheet
from distgan.strict_json import parse_object

_NUM_CLIPS = 8
_MOST_FRAMES = 8  # of a clip, spread over it: more would make the picture too wide to look at


def show(folder: str, output: str) -> str:
    """Writes a contact sheet of a few clips to the PNG `output`; returns the facts, as text.

    Raises:
        UserError: there is no data set, or no clip of it is whole.
        StorageError: object storage failed for longer than `storage.retry_seconds`.
    """
    manifest, digest = read_manifest(folder)
    rows, problems = _rows(folder, manifest)
    if not rows:
        raise UserError(
            f"the data set {folder} has no whole clip to show ({'; '.join(problems) or 'empty'}); "
            f"`launch.py data verify --data {folder}` says what is wrong"
        )
    try:
        contact_sheet(rows, output)
    except FileNotFoundError as error:
        raise UserError(f"can't write {output}: its folder can't be made; name another") from error
    lines = [f"{folder} (sha256 of its manifest: {digest[:16]}...)", summary(manifest)]
    version = manifest.prepare.get("version", "unknown")
    lines.append(f"made by distgan {version} with")
    settings = manifest.prepare.get("settings", {})
    lines += [f"  {key}={value}" for key, value in settings.items()] or ["  settings unknown"]
    lines += [f"damaged: {problem}" for problem in problems]
    lines.append(f"{len(rows)} clips to look at: {output}")
    return "\n".join(lines)


def _rows(folder: str, manifest: Manifest) -> tuple[list[tuple[str, NDArray[np.uint8]]], list[str]]:
    """Labelled clips, spread evenly over the data set, and what was found damaged on the way."""
    count = min(_NUM_CLIPS, manifest.samples)
    chosen = [(number * manifest.samples) // count for number in range(count)]
    rows: list[tuple[str, NDArray[np.uint8]]] = []
    problems: list[str] = []
    start = 0
    for index, entry in enumerate(manifest.shards):
        here = [number - start for number in chosen if start <= number < start + entry.samples]
        start += entry.samples
        if not here:
            continue
        shard = read_shard(folder, manifest, index)
        if shard.damage is not None:
            problems.append(f"{entry.name} {shard.damage.problem}")
        for place in here:
            try:
                rows.append(_row(manifest, entry.keys[place], shard, place))
            except ValueError as error:
                problems.append(f"{entry.name}: {entry.keys[place]}: {error}")
    return rows, problems


def _row(manifest: Manifest, key: str, shard: Shard, place: int) -> tuple[str, NDArray[np.uint8]]:
    """A label and one clip as (1, T, H, W, 3). Raises `ValueError` if the clip is damaged."""
    data = shard.clips[place]
    if data is None:
        causes = dict(shard.damage.samples) if shard.damage else {}
        raise ValueError(EXPLANATIONS[causes[place]])
    clip = decode(data, manifest.clip.clip_format)
    frames = np.linspace(0, len(clip) - 1, min(_MOST_FRAMES, len(clip))).round().astype(int)
    return f"{key}  {_origin(shard.facts[place])}".strip(), clip[frames][None]


def _origin(facts: bytes | None) -> str:
    """Which video a clip is from, and where it begins there, if its facts say so."""
    try:
        known = parse_object(facts or b"{}")
    except ValueError:
        return "(facts damaged)"
    if "source" not in known:
        return ""
    return f"{str(known['source'])[:60]}, from {known.get('start_s', '?')} s"
