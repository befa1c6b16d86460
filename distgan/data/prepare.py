"""Raw videos to a data set: clean, denoise, format, pack into shards, describe in a manifest.

The result depends on the videos and the settings alone, not on the number of processes.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

import distgan
from distgan import storage
from distgan.config import Config
from distgan.config_checks import stored_frames
from distgan.data.denoise import check_denoise
from distgan.data.fetching import find_inputs, input_root, sha256_of_input
from distgan.data.manifest import (
    MANIFEST_NAME,
    UNFINISHED_NAME,
    ClipSpec,
    Manifest,
    read_manifest,
    write_manifest,
)
from distgan.data.prepare_video import (
    ClipSettings,
    VideoJob,
    VideoOutcome,
    prepare_video,
    read_spool,
    start_worker,
)
from distgan.data.shards import ShardWriter
from distgan.data.videos import EXTENSIONS, FoundVideos
from distgan.data.workers import no_ctrl_c_in_new_processes, num_cores
from distgan.errors import DistganError, StorageError, UserError

REPORT_NAME = "videos.jsonl"
"""One line a video: its path, digest, why it was dropped, and counts."""

_JOBS_AHEAD = 4  # per process: bounds the spool while one long video holds up the order

_REMEDIES = {
    "videos_unreadable": "check that these files are whole videos that FFmpeg reads",
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


def prepare(
    input_folder: str, output: str, config: Config, *, show_progress: bool = True
) -> Manifest:
    """Makes a data set in the folder `output` of all videos below `input_folder`, both anywhere.

    A complete data set made with the same settings of the same videos is left as it is. On any
    failure, and on Ctrl-C, what was written is removed again.

    Raises:
        UserError: no videos, no clip came out of them, or `output` holds something else.
        StorageError: object storage failed for longer than `storage.retry_seconds`.
    """
    storage.configure(config.storage)
    check_denoise(config.prepare.denoise)
    settings = ClipSettings(
        prepare=config.prepare,
        resolution=config.data.resolution,
        stored_frames=stored_frames(config),
    )
    found = find_inputs(input_folder)
    if not found.paths:
        raise UserError(
            f"no videos in {input_folder!r}: {found.others_skipped} files with other endings than "
            f"{' '.join(sorted(EXTENSIONS))}, {found.links_skipped} links that lead out of it or to"
            " folders; name a folder that holds videos"
        )
    existing = _existing_data_set(input_folder, output, found, settings)
    if existing is not None:
        return existing
    with _new_data_set(output) as spool_folder:
        root = input_root(input_folder)
        jobs = [
            VideoJob(
                number=number, root=root, path=path, spool=str(Path(spool_folder, f"{number}.tar"))
            )
            for number, path in enumerate(found.paths)
        ]
        shard_bytes = config.prepare.shard_megabytes * 1e6
        writer = ShardWriter(output, config.prepare.clip_format, shard_bytes)
        outcomes = _write_shards(jobs, settings, writer, show_progress)
        if not writer.entries:
            raise UserError(_nothing_left(input_folder, outcomes))
        manifest = _describe(found, outcomes, writer, settings)
        _write_report(output, outcomes)
        _remove_spool(output, spool_folder)
        write_manifest(output, manifest)
    return manifest


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


def _settings_dict(settings: ClipSettings) -> dict[str, Any]:
    """What the data set depends on, by configuration key."""
    section = settings.prepare.model_dump(mode="json", exclude={"num_processes", "stored_frames"})
    keys = {f"prepare.{key}": value for key, value in section.items()}
    return {
        **keys,
        "prepare.stored_frames": settings.stored_frames,
        "data.resolution": settings.resolution,
    }


def _digest_of_inputs(paths_and_digests: Iterator[tuple[str, str]]) -> str:
    lines = [f"{digest} {path}\n" for path, digest in paths_and_digests]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def is_unfinished(output: str) -> bool:
    """Whether a folder holds what a `prepare` that was killed has left."""
    names = storage.list_names(output)
    return MANIFEST_NAME not in names and (
        UNFINISHED_NAME in names or any(name.startswith("shard-") for name in names)
    )


def _existing_data_set(
    input_folder: str, output: str, found: FoundVideos, settings: ClipSettings
) -> Manifest | None:
    """The data set in `output` if it is the wanted one; None if there is nothing yet."""
    path = storage.local_path(output) if storage.is_local(output) else None
    if path is not None and path.exists() and not path.is_dir():
        raise UserError(f"--output {output!r} is a file; name an empty or new folder")
    names = storage.list_names(output)
    if not names:
        return None
    if MANIFEST_NAME not in names:
        unfinished = is_unfinished(output)
        what = "an unfinished data set" if unfinished else f"something else ({names[0]}, ...)"
        remedy = f"empty it first ({', '.join(names[:2])} ...)" if unfinished else "empty it first"
        raise UserError(
            f"--output {output!r} holds {what}; name an empty or new folder, or {remedy}"
        )
    manifest, _ = read_manifest(output)
    there, wanted = manifest.prepare.get("settings", {}), _settings_dict(settings)
    differing = [key for key, value in wanted.items() if there.get(key) != value]
    if differing:
        key = differing[0]
        raise UserError(
            f"--output {output!r} holds a data set made with other settings ({key}="
            f"{there.get(key)} there, {wanted[key]} here); name another folder, or delete that one"
        )
    root = input_root(input_folder)
    inputs = _digest_of_inputs((path, sha256_of_input(root, path)) for path in found.paths)
    if manifest.prepare.get("inputs_sha256") != inputs:
        raise UserError(
            f"--output {output!r} holds a data set made of other videos than those in "
            f"{input_folder!r}; name another folder, or delete that one"
        )
    return manifest


@contextlib.contextmanager
def _new_data_set(output: str) -> Iterator[str]:
    """A local spool folder for a new data set; on failure all that was written is removed."""
    existed = storage.exists(output)
    try:
        spool = _make_spool(output)
    except OSError as error:
        raise UserError(
            f"can't write to --output {output!r}: {error.strerror}; name another folder"
        ) from error
    try:
        yield spool
    except StorageError:
        shutil.rmtree(spool, ignore_errors=True)
        raise  # what is there stays, without a manifest: removing it would fail for as long again
    except BaseException:
        _remove_spool(output, spool)
        for name in storage.list_names(output):
            if name == REPORT_NAME or name.startswith("shard-"):
                storage.remove(storage.join(output, name))
        if storage.is_local(output) and not existed:
            storage.local_path(output).rmdir()
        raise


def _make_spool(output: str) -> str:
    """In a local output, beside the shards, where there is room; else among temporary files.

    On object storage a mark says that the data set is unfinished, and whether one may write there.
    """
    if not storage.is_local(output):
        storage.write_bytes(storage.join(output, UNFINISHED_NAME), b"unfinished")
        return tempfile.mkdtemp(prefix="distgan-prepare-")
    spool = storage.local_path(output) / UNFINISHED_NAME
    spool.mkdir(parents=True)
    return str(spool)


def _remove_spool(output: str, spool: str) -> None:
    if Path(spool).exists():
        shutil.rmtree(spool)
    if not storage.is_local(output):
        storage.remove(storage.join(output, UNFINISHED_NAME))


def _write_shards(
    jobs: list[VideoJob], settings: ClipSettings, writer: ShardWriter, show_progress: bool
) -> list[VideoOutcome]:
    outcomes: list[VideoOutcome] = []
    results = _outcomes(jobs, settings)
    with (
        contextlib.closing(results),
        tqdm(total=len(jobs), desc="prepare", unit="video", disable=not show_progress) as progress,
    ):
        for outcome in results:
            if outcome.counts["clips"]:
                for key, facts, clip in read_spool(outcome, settings.prepare.clip_format):
                    writer.write(key, facts, clip)
                Path(outcome.job.spool).unlink()
            outcomes.append(outcome)
            progress.update()
            progress.set_postfix(
                clips=sum(entry.counts["clips"] for entry in outcomes), refresh=False
            )
        writer.finish()
    return outcomes


def _outcomes(jobs: list[VideoJob], settings: ClipSettings) -> Generator[VideoOutcome, None, None]:
    """Works on the videos, in parallel; outcomes come in the order of the jobs."""
    processes = min(settings.prepare.num_processes or num_cores(), len(jobs))
    if processes == 1:
        yield from (prepare_video(job, settings) for job in jobs)
        return
    context = get_context("spawn")
    called_off = context.Event()
    pending: deque[tuple[VideoJob, Future[VideoOutcome]]] = deque()
    with ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=start_worker,
        initargs=(called_off, storage.options()),
    ) as pool:
        try:
            for job in jobs:
                with no_ctrl_c_in_new_processes():
                    pending.append((job, pool.submit(prepare_video, job, settings)))
                if len(pending) >= _JOBS_AHEAD * processes:
                    yield pending.popleft()[1].result()
            while pending:
                yield pending.popleft()[1].result()
        except BrokenProcessPool as error:
            raise DistganError(
                "a worker process died (out of memory, or a video that crashes the decoder) at "
                f"or after {job.path!r}; lower prepare.num_processes, or take that video out"
            ) from error
        finally:
            called_off.set()  # after success nobody is left to see it
            pool.shutdown(cancel_futures=True)


def _describe(
    found: FoundVideos, outcomes: list[VideoOutcome], writer: ShardWriter, settings: ClipSettings
) -> Manifest:
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        totals.update(outcome.counts)
    dropped = Counter(outcome.cause for outcome in outcomes if outcome.cause)
    for name in ("frames_black", "frames_damaged", "segments_too_short", "clips_frozen"):
        dropped[name] = totals[name]
    dropped["links_skipped"] = found.links_skipped
    dropped["other_files_skipped"] = found.others_skipped
    return Manifest(
        clip=ClipSpec(
            resolution=settings.resolution,
            stored_frames=settings.stored_frames,
            frame_rate_hz=settings.prepare.frame_rate_hz,
            clip_format=settings.prepare.clip_format,
        ),
        shards=tuple(writer.entries),
        prepare={
            "version": distgan.__version__,
            "settings": _settings_dict(settings),
            "inputs_sha256": _digest_of_inputs((o.job.path, o.sha256) for o in outcomes),
        },
        counts={
            "videos_found": len(outcomes),
            "videos_used": sum(not outcome.cause for outcome in outcomes),
            "bytes": sum(outcome.bytes for outcome in outcomes),
            "frames_decoded": totals["frames_decoded"],
            "frames_chosen": totals["frames_chosen"],
            "segments": totals["segments"],
            "clips": totals["clips"],
        },
        dropped=dict(sorted((+dropped).items())),
    )


def _write_report(output: str, outcomes: list[VideoOutcome]) -> None:
    lines = [
        json.dumps(
            {
                "video": outcome.job.path,
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


def _nothing_left(input_folder: str, outcomes: list[VideoOutcome]) -> str:
    """The message for videos of which not one clip came: causes, an example each, remedies."""
    by_cause: dict[str, list[VideoOutcome]] = {}
    for outcome in outcomes:
        by_cause.setdefault(outcome.cause, []).append(outcome)
    parts = [
        f"{len(group)} {cause.replace('_', ' ')} ({group[0].job.path}: {group[0].detail}): "
        f"{_REMEDIES[cause]}"
        for cause, group in sorted(by_cause.items())
    ]
    start = f"no clip came out of the {len(outcomes)} videos in {input_folder!r}: "
    return start + "; ".join(parts)
