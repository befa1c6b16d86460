"""A prepare that notes each video it has worked on, and kills itself at an exact place."""

import os
import signal
from pathlib import Path
from typing import Any

from distgan import storage
from distgan.config import Config
from distgan.config_loading import with_values
from distgan.data import journal
from distgan.data import prepare as prepare_module
from distgan.data.manifest import MANIFEST_NAME
from distgan.data.prepare_video import ClipSettings, prepare_video
from distgan.data.spooling import VideoJob
from tests.object_servers import CREDENTIALS, options_for

SMALL = with_values(
    Config(),
    {
        "data.resolution": 32,
        "data.clip_frames": 8,
        "prepare.num_processes": 1,
        "prepare.denoise.kind": "none",
        "prepare.clip_format": "npy",
        "prepare.shard_megabytes": 0.07,  # three clips
    },
)


def prepare_until(source: str, output: str, log: str, place: str, port: int) -> None:
    """Prepares with `SMALL` and dies by SIGKILL at the place.

    Args:
        log: a line for every video whose work is done.
        place: a name below and how many times to pass it before, or * for the first time.
        port: of a server of object storage; 0 if there is none.
    """
    name, _, number = place.partition(" ")
    passes = 0 if number == "*" else int(number or 0)

    def die_at(here: str) -> None:
        nonlocal passes
        if here == name:
            if passes == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            passes -= 1

    write, add_shard = storage.write_bytes, journal.Journal.add_shard

    def work_and_note(job: VideoJob, settings: ClipSettings) -> None:
        prepare_video(job, settings)
        with Path(log).open("a") as file:
            file.write(f"{job.number}\n")
        die_at("video")

    def write_or_die(path: str, data: bytes) -> None:
        file = path.rpartition("/")[2]
        is_shard = file.startswith("shard-")
        if is_shard and file.endswith(".tar"):
            if name == "half" and passes == 0 and storage.is_local(path):
                Path(path).with_name(f".{file}.partial").write_bytes(data[: len(data) // 2])
            die_at("half")
        if file == MANIFEST_NAME:
            die_at("before-manifest")
        write(path, data)
        if file == MANIFEST_NAME:
            die_at("after-manifest")
        if is_shard and file.endswith(".json"):
            die_at("record")

    def add_or_die(self: journal.Journal, *arguments: Any) -> None:
        die_at("shard")
        add_shard(self, *arguments)

    _replace(prepare_module, "prepare_video", work_and_note)
    _replace(storage, "write_bytes", write_or_die)
    _replace(journal.Journal, "add_shard", add_or_die)
    os.environ.update(CREDENTIALS)
    config = SMALL.model_copy(update={"storage": options_for(port)}) if port else SMALL
    prepare_module.prepare(source, output, config, show_progress=False)


def _replace(owner: object, name: str, value: object) -> None:
    """For good: the process belongs to one prepare."""
    setattr(owner, name, value)
