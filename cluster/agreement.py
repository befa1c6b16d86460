"""What must be the same on all machines of a run: versions, code, run folder, data."""

import contextlib
import functools
import hashlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import cluster
import distgan
from distgan import storage
from distgan.config import Config
from distgan.errors import DistganError, StorageError, UserError, for_user
from distgan.team import Team, failing_together, from_first

_PACKAGES = ("torch", "ray", "deepspeed", "safetensors", "numpy", "av")


def versions() -> dict[str, str]:
    """Of what must be the same on all machines of a run."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "distgan's code": _digest_of_code()} | packages


@functools.cache
def _digest_of_code() -> str:
    """Of what is installed when it is first asked for: what this process runs, as good as always. A
    checkout that was changed has the version that it had before."""
    digest = hashlib.sha256()
    for package in (distgan, cluster):
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("[!.]*.py")):  # editors keep their own beside
            digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def check_versions(wanted: dict[str, str]) -> None:
    """Raises `UserError` if this machine has others than the process that started the run."""
    here = versions()
    differing = [f"{n} {here.get(n)} instead of {v}" for n, v in wanted.items() if here.get(n) != v]
    if differing:
        raise UserError(
            "this machine has other versions than the process that started the run: "
            f"{', '.join(differing)}; install the same on every machine, and if the code was "
            "changed while it ran, run the same command again"
        )


def check_data(config: Config, digest: str, team: Team) -> None:
    """Raises `UserError` on every rank unless all of them see one data set.

    Args:
        digest: of the manifest that this rank sees.
    """
    digests = team.gather(digest)
    others = [str(rank) for rank, seen in enumerate(digests) if seen != digests[0]]
    if others:
        raise UserError(
            f"data.shards={config.data.shards}: rank {', '.join(others)} sees another data set "
            "there than rank 0 (its manifest differs); give a folder on a shared disk or object "
            "storage, or copy the same data set to every machine"
        )


def check_storage(config: Config, team: Team, *, seen: bool = False) -> None:
    """Raises `UserError` on every rank unless each sees what rank 0 writes to the run's folder.

    The process that started the run has written there just now, so that no error is taken for one
    that may pass; but if the ranks of an earlier attempt have `seen` it, `StorageError` may.
    """
    reaching = functools.partial(_reaching, config, may_pass=seen)
    name = storage.join(config.run.dir, ".seen_by_all_ranks")
    token = from_first(team, os.urandom(8).hex() if team.rank == 0 else None).encode()
    with failing_together(team), reaching():
        if team.rank == 0:
            storage.write_bytes(name, token)
    try:
        with failing_together(team), reaching():
            if not storage.exists(name) or storage.read_bytes(name) != token:
                raise UserError("it is not the same folder as on the machine of rank 0")
    finally:
        with failing_together(team), reaching():
            if team.rank == 0:
                storage.remove(name)


@contextlib.contextmanager
def _reaching(config: Config, *, may_pass: bool) -> Iterator[None]:
    try:
        yield
    except (OSError, DistganError) as error:
        passing = may_pass and not isinstance(error, UserError)
        if passing and not (isinstance(error, OSError) and for_user(error)):
            raise StorageError(f"run.dir={config.run.dir} can't be used now: {error}") from error
        raise UserError(
            f"run.dir={config.run.dir} can't be used from here: {error}; give a folder on a shared "
            "disk that this user may write to, or object storage that every machine reaches"
        ) from error
