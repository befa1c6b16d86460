"""The manifest of a data set: what `prepare` wrote, and what a reader may count on.

A data set is a folder with `manifest.json` and `shard-000000.tar` ...: standard WebDataset tars
whose samples are `KEY.json` (facts about the clip) and one clip member, `KEY.mp4` or `KEY.npy`.
"""

import hashlib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distgan import storage
from distgan.data.tars import is_plain_name
from distgan.errors import UserError

MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = ".prepare"
"""Folder in it that holds the finished part of the work until all is done; see `journal`."""


MOST_SHARD_BYTES = 2**32
"""A shard is read whole; prepare makes them of at most 1 GB."""


class ShardEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[^/\\\x00-\x1f]{1,200}\.tar$")
    """File in the data set's own folder."""
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0, le=MOST_SHARD_BYTES)
    sha256: str
    keys: tuple[str, ...]
    """Sample keys in the order of the tar."""
    crc32: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...]
    """Of each sample's clip member, in the same order."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if not self.samples == len(self.keys) == len(self.crc32):
            raise ValueError(
                f"{self.samples} samples, {len(self.keys)} keys and {len(self.crc32)} crc32"
            )
        for key in self.keys:
            if not is_plain_name(key):
                raise ValueError(f"the key {key[:80]!r} leads outside, or is no text")
        return self


class ClipSpec(BaseModel):
    """What every stored clip looks like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolution: int = Field(ge=1, le=2**16)
    stored_frames: int = Field(ge=1, le=2**20)
    frame_rate_hz: float = Field(ge=0, allow_inf_nan=False)
    """0 where each clip keeps its video's own rate."""
    clip_format: Literal["mp4", "npy"]


class Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["distgan-dataset"] = "distgan-dataset"
    version: Literal[1] = 1
    clip: ClipSpec
    shards: tuple[ShardEntry, ...]
    prepare: dict[str, Any]
    """Version and settings that made the data set."""
    counts: dict[str, int]
    """Videos in, clips out, and the like."""
    dropped: dict[str, int]
    """What was left out: cause -> count."""

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        if self.counts.get("clips", self.samples) != self.samples:
            raise ValueError(
                f"it counts {self.counts['clips']} clips, but its shards list {self.samples}"
            )
        return self

    @property
    def samples(self) -> int:
        """Clips in the whole data set."""
        return sum(shard.samples for shard in self.shards)


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Written last by prepare: a folder without it is not a data set."""
    text = manifest.model_dump_json(indent=1)
    storage.write_bytes(storage.join(folder, MANIFEST_NAME), text.encode())


def read_manifest(folder: str) -> tuple[Manifest, str]:
    """The manifest of a data set and its sha256, which names the data set.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = storage.join(folder, MANIFEST_NAME)
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(_no_manifest(folder)) from error
    try:
        return Manifest.model_validate_json(data), hashlib.sha256(data).hexdigest()
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(
            f"{path} is damaged or not a manifest of this version ({place}: {problem['msg']}); "
            "prepare the data set again"
        ) from error


def is_shard_name(name: str) -> bool:
    """Whether a file is named as prepare names shards: shard-*.tar."""
    return name.startswith("shard-") and name.endswith(".tar")


def _no_manifest(folder: str) -> str:
    """The message for a folder without a manifest, with the remedy for what is there instead."""
    prepare = f"`launch.py prepare --input VIDEOS --output {folder or 'FOLDER'}`"
    names = storage.list_names(folder)
    start = f"no data set in {folder!r}: {MANIFEST_NAME} is missing"
    if UNFINISHED_NAME in names:
        return (
            f"{start}: prepare has not finished it (it is at work there, or was cut short); let it "
            f"finish, or run its command again, and it goes on: {prepare}"
        )
    shards = sum(is_shard_name(name) for name in names)
    if shards:
        return (
            f"{start}, but there are {shards} shards: index them with "
            f"`launch.py data index --data {folder}`"
        )
    return f"{start}; make one with {prepare}"
