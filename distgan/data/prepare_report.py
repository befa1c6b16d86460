"""What prepare says of its work: the manifest, the report of all videos, and messages."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import distgan
from distgan import storage
from distgan.data.journal import REPORT_NAME
from distgan.data.manifest import ClipSpec, Manifest, ShardEntry
from distgan.data.prepare_video import ClipSettings
from distgan.data.spooling import VideoOutcome
from distgan.data.videos import FoundVideos

_REMEDIES = {
    "videos_unreadable": "check that these files are whole videos that FFmpeg reads",
    "videos_over_max_megabytes": "raise prepare.limits.max_megabytes",
    "videos_over_max_pixels": "raise prepare.limits.max_pixels",
    "videos_over_max_frames": "raise prepare.limits.max_frames",
    "videos_over_max_seconds": "raise prepare.limits.max_seconds",
    "videos_over_max_cpu_seconds": "raise prepare.limits.max_cpu_seconds or denoise with less",
    "videos_over_max_aspect": "cut such strips to less than 8:1 first",
    "videos_too_short": "give longer videos, or lower prepare.stored_frames, data.clip_frames or "
    "data.frame_stride, or raise prepare.frame_rate_hz",
    "videos_in_short_pieces": "raise prepare.clean.scene_threshold, or lower data.clip_frames",
    "videos_black": "lower prepare.clean.black_level",
    "videos_frozen": "lower prepare.clean.frozen_difference",
}

_DROPPED_IN_PART = (
    "frames_black", "frames_damaged", "videos_cut_short", "segments_too_short", "clips_frozen"
)  # fmt: skip


def summary(manifest: Manifest) -> str:
    """What went in, what was dropped and why, and what came out, as a table."""
    clip, counts = manifest.clip, manifest.counts
    rate = f"{clip.frame_rate_hz:g} Hz" if clip.frame_rate_hz else "each video's own rate"
    size_mb = sum(shard.bytes for shard in manifest.shards) / 1e6
    rows = [("in", name.replace("_", " "), count) for name, count in counts.items()]
    rows += [("dropped", name.replace("_", " "), count) for name, count in manifest.dropped.items()]
    rows += [("out", "clips", manifest.samples), ("out", "shards", len(manifest.shards))]
    width = max(len(name) for _, name, _ in rows)
    lines, before = [], ""
    for part, name, count in rows:
        lines.append(f"{part if part != before else '':<9}{name:<{width}}  {count:>12,}")
        before = part
    lines.append(
        f"clips: {clip.stored_frames} frames of {clip.resolution}x{clip.resolution} at {rate}, "
        f"{clip.clip_format}; {size_mb:.2f} MB"
    )
    return "\n".join(lines)


def settings_dict(settings: ClipSettings) -> dict[str, Any]:
    """What the data set depends on, by configuration key."""
    section = settings.prepare.model_dump(mode="json", exclude={"num_processes", "stored_frames"})
    keys = {f"prepare.{key}": value for key, value in section.items()}
    return {
        **keys,
        "prepare.stored_frames": settings.stored_frames,
        "data.resolution": settings.resolution,
    }


def digest_of_inputs(paths_and_digests: Iterable[tuple[str, str]]) -> str:
    """Names the videos that a data set was made of: (path, sha256) of each."""
    lines = [f"{digest} {path}\n" for path, digest in paths_and_digests]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def describe(
    found: FoundVideos,
    outcomes: Sequence[VideoOutcome],
    shards: Sequence[ShardEntry],
    settings: ClipSettings,
) -> Manifest:
    """The manifest of shards that hold the clips of these videos."""
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        totals.update(outcome.counts)
    dropped = Counter(outcome.cause for outcome in outcomes if outcome.cause)
    for name in _DROPPED_IN_PART:
        dropped[name] = totals[name]
    digests = [outcome.sha256 for outcome in outcomes if outcome.sha256]
    dropped["links_skipped"] = found.links_skipped
    dropped["other_files_skipped"] = found.others_skipped
    return Manifest(
        clip=ClipSpec(
            resolution=settings.resolution,
            stored_frames=settings.stored_frames,
            frame_rate_hz=settings.prepare.frame_rate_hz,
            clip_format=settings.prepare.clip_format,
        ),
        shards=tuple(shards),
        prepare={
            "version": distgan.__version__,
            "settings": settings_dict(settings),
            "inputs_sha256": digest_of_inputs((o.path, o.sha256) for o in outcomes),
        },
        counts={
            "videos_found": len(outcomes),
            "videos_used": sum(not outcome.cause for outcome in outcomes),
            "videos_repeated": len(digests) - len(set(digests)),
            "bytes": sum(outcome.bytes for outcome in outcomes),
            "frames_decoded": totals["frames_decoded"],
            "frames_chosen": totals["frames_chosen"],
            "segments": totals["segments"],
            "clips": totals["clips"],
        },
        dropped=dict(sorted((+dropped).items())),
    )


def write_report(output: str, outcomes: Sequence[VideoOutcome]) -> None:
    """Writes a line of JSON a video beside the shards."""
    lines = [
        json.dumps(
            {
                "video": outcome.path,
                "bytes": outcome.bytes,
                "sha256": outcome.sha256,
                "cause": outcome.cause,
                "detail": outcome.detail,
                **outcome.counts,
            }
        )
        for outcome in outcomes
    ]
    storage.write_bytes(storage.join(output, REPORT_NAME), "\n".join([*lines, ""]).encode())


def nothing_left(input_folder: str, outcomes: Sequence[VideoOutcome]) -> str:
    """The message for videos of which not one clip came: causes, an example each, remedies."""
    by_cause: dict[str, list[VideoOutcome]] = {}
    for outcome in outcomes:
        by_cause.setdefault(outcome.cause, []).append(outcome)
    parts = [
        f"{len(group)} {cause.replace('_', ' ')} ({group[0].path}: {group[0].detail}): "
        f"{_REMEDIES[cause]}"
        for cause, group in sorted(by_cause.items())
    ]
    start = f"no clip came out of the {len(outcomes)} videos in {input_folder!r}: "
    return start + "; ".join(parts)
