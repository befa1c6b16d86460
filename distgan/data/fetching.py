"""Input videos wherever they lie. FFmpeg sees files of this machine only: others are fetched."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from distgan import storage
from distgan.config import LimitsConfig
from distgan.data.videos import EXTENSIONS, DroppedVideoError, FoundVideos, find_videos
from distgan.errors import TooLargeError, UserError
from distgan.temporary import temporary_folder


def find_inputs(folder: str) -> FoundVideos:
    """Videos below a local folder or a URL of object storage; see `find_videos`.

    Raises:
        UserError: there is no such folder, or it can't be read.
    """
    if storage.is_local(folder):
        return find_videos(str(storage.local_path(folder)))
    found = storage.list_tree(folder)
    if not found:
        raise UserError(f"--input {folder!r} holds nothing; name a URL below which videos lie")
    files = [path for path in found if not path.endswith("/")]  # the others stand for folders
    videos = [path for path in files if _suffix(path) in EXTENSIONS]
    return FoundVideos(videos, 0, len(files) - len(videos))


def input_root(folder: str) -> str:
    """The folder that the paths of `find_inputs` are relative to, for any working directory."""
    if storage.is_local(folder):
        return str(storage.local_path(folder).resolve())
    return folder.rstrip("/")


def stamps(folder: str, paths: Sequence[str]) -> list[str]:
    """For each video below `folder` a text that is another one once the file was written anew."""
    if not storage.is_local(folder):
        found = storage.list_stamps(folder)
        return [found.get(path, "gone") for path in paths]
    return [_local_stamp(storage.local_path(folder) / path) for path in paths]


def _local_stamp(path: Path) -> str:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return "gone"
    return f"{facts.st_size} {facts.st_mtime_ns}"


@contextlib.contextmanager
def local_copy(root: str, path: str, limits: LimitsConfig, room: str = "") -> Iterator[Path]:
    """The video as a local file: itself, or a copy that lasts as long as the context.

    Args:
        room: local folder for the copy; empty means where the system keeps temporary files.

    Raises:
        DroppedVideoError: it has more bytes than allowed; no more than that are ever fetched.
        DistganError: it can't be fetched.
        FileNotFoundError: it is gone.
    """
    max_bytes = int(limits.max_megabytes * 1e6)
    if storage.is_local(root):
        if Path(root, path).stat().st_size > max_bytes:
            raise _over(limits)
        yield Path(root, path)
        return
    # FFmpeg's guesses look at the name's ending; nothing else of a foreign name is used.
    with temporary_folder(room) as folder:
        copy = folder / ("video" + _suffix(path))
        try:
            storage.fetch(storage.join(root, path), copy, max_bytes=max_bytes)
        except TooLargeError as error:
            raise _over(limits) from error
        yield copy


def sha256_of_input(root: str, path: str, limits: LimitsConfig) -> str:
    """Hex digest of a whole video; empty if it can't be read, or is too large to."""
    try:
        with local_copy(root, path, limits) as file:
            return sha256_of_file(file)
    except DroppedVideoError:
        return ""
    except OSError as error:
        if not storage.is_local(root) and not isinstance(error, FileNotFoundError):
            raise  # the disk for the copy is full
        return ""


def _over(limits: LimitsConfig) -> DroppedVideoError:
    detail = f"more than {limits.max_megabytes:g} megabytes"
    return DroppedVideoError("videos_over_max_megabytes", detail)


def sha256_of_file(path: Path) -> str:
    """Hex digest of a whole local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
