"""Paths as users write them: absolute from here on, because workers run in other folders."""

import os
import re

from distgan import storage
from distgan.addresses import check_url
from distgan.errors import UserError

IN_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the command of a submitted job."""
_ONE_SLASH = re.compile(r"(s3a?|gs|gcs|https?):/(?!/)", re.IGNORECASE)


def absolute(path: str) -> str:
    """Local paths become absolute; URLs stay as they are, but for capitals in their scheme.

    Raises:
        UserError: the path is empty (it would mean the current folder), a URL without a bucket or
            with one slash, or relative in a submitted job, whose folder is a copy that ends with
            the cluster.
    """
    if not path:
        raise UserError("a folder is empty text; give its path")
    if not storage.is_local(path):
        check_url(path)
        scheme, _, rest = path.partition("://")
        return f"{scheme.lower()}://{rest.rstrip('/')}"
    if _ONE_SLASH.match(path):
        raise UserError(f"{path!r} has one slash where a URL has two; write s3://BUCKET/FOLDER")
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
