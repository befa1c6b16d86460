"""Paths as users write them: absolute from here on, because workers run in other folders."""

import os

from distgan import storage
from distgan.errors import UserError

IN_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the command of a submitted job."""


def absolute(path: str) -> str:
    """Local paths become absolute; URLs stay as they are.

    Raises:
        UserError: the path is empty (it would mean the current folder), or relative in a submitted
            job, whose folder is a copy that ends with the cluster.
    """
    if not path:
        raise UserError("a folder is empty text; give its path")
    if not storage.is_local(path):
        return path.rstrip("/")
    local = storage.local_path(path).expanduser()
    if IN_RAY_JOB in os.environ and not local.is_absolute():
        refuse_relative(path)
    return str(local.absolute())


def refuse_relative(path: str) -> None:
    """Raises `UserError`."""
    raise UserError(
        f"{path} is a relative path: a submitted job runs in a copy of this folder, which ends "
        "with the cluster; give a path on a disk that all machines share, or a URL such as s3://..."
    )
