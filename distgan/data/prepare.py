"""Raw videos to a data set: clean, denoise, format, pack into shards, describe in a manifest.

The result depends on the videos and the settings alone: not on who works on the videos, and not on
how often the work was cut short and begun again (see `journal`).
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from functools import partial

import distgan
from distgan import storage
from distgan.config import Config
from distgan.config_checks import stored_frames
from distgan.data.denoise import check_denoise
from distgan.data.executors import Executor, InProcesses
from distgan.data.fetching import find_inputs, input_root, sha256_of_input, stamps
from distgan.data.journal import Journal, Plan, open_journal, remove_journal
from distgan.data.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from distgan.data.prepare_report import (
    describe,
    digest_of_inputs,
    nothing_left,
    settings_dict,
    write_report,
)
from distgan.data.prepare_video import ClipSettings, prepare_video
from distgan.data.progress import Progress
from distgan.data.shards import ShardWriter
from distgan.data.spooling import VideoJob, VideoOutcome, open_spools
from distgan.data.videos import EXTENSIONS, FoundVideos
from distgan.errors import UserError


def prepare(
    input_folder: str,
    output: str,
    config: Config,
    *,
    executor: Executor | None = None,
    show_progress: bool = True,
) -> Manifest:
    """Makes a data set in the folder `output` of all videos below `input_folder`, both anywhere.

    A complete data set made with the same settings of the same videos is left as it is; an
    unfinished one, however it was cut short, is gone on with.

    Args:
        executor: works on the videos; None means processes of this machine.

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
        remove_journal(output)  # a kill may have come just before
        return existing
    root = input_root(input_folder)
    plan = Plan(
        version=distgan.__version__,
        settings=settings_dict(settings),
        videos=dict(zip(found.paths, stamps(root, found.paths), strict=True)),
    )
    with open_journal(output, plan) as journal:
        jobs = [
            VideoJob(number=number, root=root, path=path, spool=journal.spool(number))
            for number, path in enumerate(found.paths)
        ]
        executor = executor or InProcesses(config.prepare.num_processes)
        outcomes = _write_shards(jobs, settings, journal, executor, show_progress)
        if not journal.entries:
            remove_journal(output)  # the remedy is another plan
            raise UserError(nothing_left(input_folder, outcomes))
        write_report(output, outcomes)
        manifest = describe(found, outcomes, journal.entries, settings)
        write_manifest(output, manifest)
        remove_journal(output)
    return manifest


def _existing_data_set(
    input_folder: str, output: str, found: FoundVideos, settings: ClipSettings
) -> Manifest | None:
    """The data set in `output` if it is the wanted one; None if there is no whole one."""
    path = storage.local_path(output) if storage.is_local(output) else None
    if path is not None and path.exists() and not path.is_dir():
        raise UserError(f"--output {output!r} is a file; name an empty or new folder")
    if MANIFEST_NAME not in storage.list_names(output):
        return None
    manifest, _ = read_manifest(output)
    there, wanted = manifest.prepare.get("settings", {}), settings_dict(settings)
    differing = [key for key, value in wanted.items() if there.get(key) != value]
    if differing:
        key = differing[0]
        raise UserError(
            f"--output {output!r} holds a data set made with other settings ({key}="
            f"{there.get(key)} there, {wanted[key]} here); name another folder, or delete that one"
        )
    root = input_root(input_folder)
    inputs = digest_of_inputs(
        (path, sha256_of_input(root, path, settings.prepare.limits)) for path in found.paths
    )
    if manifest.prepare.get("inputs_sha256") != inputs:
        raise UserError(
            f"--output {output!r} holds a data set made of other videos than those in "
            f"{input_folder!r}; name another folder, or delete that one"
        )
    return manifest


def _write_shards(
    jobs: list[VideoJob],
    settings: ClipSettings,
    journal: Journal,
    executor: Executor,
    show_progress: bool,
) -> list[VideoOutcome]:
    """Brings the journal to its end; returns what became of each video."""
    config = settings.prepare
    shard_bytes, first = config.shard_megabytes * 1e6, len(journal.entries)
    shards = ShardWriter(journal.output, config.clip_format, shard_bytes, first=first)
    recorded = len(journal.outcomes)
    finished: list[VideoOutcome] = []  # videos that end in the shard in hand
    clips = sum(entry.samples for entry in journal.entries)
    left = jobs[recorded:]
    new = [job for job in left if job.number not in journal.spooled]
    with (
        contextlib.closing(shards) as writer,
        Progress(len(jobs), len(jobs) - len(new), clips, show=show_progress) as progress,
        contextlib.closing(executor.run(partial(prepare_video, settings=settings), new)) as results,
        contextlib.ExitStack() as stack,
    ):
        worked_on = _when_worked_on(left, results, journal.spooled)
        spools = stack.enter_context(contextlib.closing(open_spools(worked_on)))
        for job, spool in spools:
            is_new = job.number not in journal.spooled
            skip = journal.clips_of_next if job.number == recorded else 0
            for place, sample in enumerate(spool.samples()):
                # The first ones may be in a shard of an earlier start.
                entry = writer.write(*sample) if place >= skip else None
                if entry is not None:
                    journal.add_shard(entry, finished, place + 1)
                    finished = []
            finished.append(spool.outcome)
            progress.update(is_new=is_new, clips=spool.outcome.counts["clips"] - skip)
        entry = writer.finish()
        if entry is not None:
            journal.add_shard(entry, finished, 0)
            finished = []
    return [*journal.outcomes, *finished]


def _when_worked_on(
    jobs: Iterable[VideoJob], results: Iterator[VideoJob], spooled: Collection[int]
) -> Iterator[VideoJob]:
    """Each job once its clips lie in its spool; of those `spooled` already, nobody works on."""
    for job in jobs:
        if job.number not in spooled:
            done = next(results)
            assert done == job, "results come in the order of the jobs"
        yield job
