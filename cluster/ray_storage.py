"""Where Ray Train keeps its own records of a run: `run.dir/ray/`, local or on object storage."""

import pyarrow.fs

from distgan import storage
from distgan.run_folder import RAY


def ray_storage(run_dir: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """Path and file system for Ray Train; object storage goes the way that all of ours goes."""
    folder = storage.join(run_dir, RAY)
    if storage.is_local(folder):
        return folder, None
    # pyarrow's own S3 client can't upload to every S3-compatible store.
    filesystem, path = storage.file_system(folder)
    return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
