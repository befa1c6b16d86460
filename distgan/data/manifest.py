"""The manifest of a data set: what `prepare` wrote, and what a reader may count on.

A data set is a folder with `manifest.json` and `shard-000000.tar` ...: standard WebDataset tars
whose samples are `KEY.json` (facts about the clip) and one clip member, `KEY.mp4` or `KEY.npy`.
"""

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from distgan import storage
from distgan.errors import UserError

MANIFEST_NAME = "manifest.json"


class ShardEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    samples: int
    bytes: int
    sha256: str
    keys: tuple[str, ...]
    """Sample keys in the order of the tar."""
    crc32: tuple[int, ...]
    """Of each sample's clip member, in the same order."""


class ClipSpec(BaseModel):
    """What every stored clip looks like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolution: int
    stored_frames: int
    frame_rate_hz: float
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
        raise UserError(
            f"no data set in {folder!r}: {MANIFEST_NAME} is missing; make one with "
            f"`launch.py prepare --input VIDEOS --output {folder or 'FOLDER'}`"
        ) from error
    try:
        return Manifest.model_validate_json(data), hashlib.sha256(data).hexdigest()
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(
            f"{path} is damaged or not a manifest of this version ({place}: {problem['msg']}); "
            "prepare the data set again"
        ) from error
