"""Input videos wherever they lie. FFmpeg sees files of this machine only: others are fetched."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from distgan import storage
from distgan.data.videos import EXTENSIONS, FoundVideos, find_videos
from distgan.errors import UserError


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


@contextlib.contextmanager
def local_copy(root: str, path: str, spool_folder: str | None = None) -> Iterator[Path]:
    """The video as a local file: itself, or a copy that lasts as long as the context.

    Raises:
        DistganError: it can't be fetched.
        FileNotFoundError: it is gone.
    """
    if storage.is_local(root):
        yield Path(root, path)
        return
    # FFmpeg's guesses look at the name's ending; nothing else of a foreign name is used.
    with tempfile.TemporaryDirectory(prefix="distgan-video-", dir=spool_folder) as folder:
        copy = Path(folder, "video" + _suffix(path))
        storage.fetch(storage.join(root, path), copy)
        yield copy


def sha256_of_input(root: str, path: str, spool_folder: str | None = None) -> str:
    """Hex digest of a whole video."""
    with local_copy(root, path, spool_folder) as file:
        return sha256_of_file(file)


def sha256_of_file(path: Path) -> str:
    """Hex digest of a whole local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
