"""`launch.py submit`: hands a command line to a Ray cluster through its job API."""

import argparse
import asyncio
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from tqdm import tqdm

from distgan import storage
from distgan.config_loading import load_config
from distgan.errors import DistganError, UserError
from distgan.paths import refuse_relative

STOP_WAIT_S = 600
"""How long a stopped job may take to write its last checkpoint; Ray's own default is 3 s."""

_LOST_S = 60.0
_AGAIN_S = 1.0

EXCLUDED = [
    "/.git", "/.venv", "/venv", "/env", "/.env", "/.tox", "/.nox", ".*_cache", "__pycache__",
    "/runs", "/sweeps", "/compare", "/demo", "/data", "/videos", "/new_videos", "/data_sheet.png",
    "*.mp4", "*.tar", "*.safetensors",
]  # fmt: skip
"""What does not travel, whatever .gitignore says: the user may have changed that."""


class JobError(DistganError):
    """The cluster lost the job, or stopped it, or is lost itself."""


class _LostError(Exception):
    """The cluster no longer answers."""


def check_travels(parsed: argparse.Namespace) -> None:
    """Raises `UserError` for a command that would fail on a cluster, or lose its output there."""
    if parsed.command == "submit":
        raise UserError("submit can't be submitted")
    given = [getattr(parsed, name, None) for name in ("input", "output", "run", "data")]
    of_sweep = [getattr(parsed, name, None) for name in ("status", "report", "export", "retrain")]
    if any(of_sweep):  # of `tune`, instead of a sweep
        given += of_sweep
    elif parsed.command in ("train", "tune"):
        config = load_config(parsed.preset, parsed.config, parsed.overrides)
        if not config.run.dir:
            raise UserError("run.dir is not set: give a URL, or a folder that all machines share")
        given += [config.run.dir, config.run.init_from, config.data.shards, config.data.cache_dir]
    for path in filter(None, given):
        if storage.is_local(path) and not storage.local_path(path).expanduser().is_absolute():
            refuse_relative(path)


def submit(arguments: Sequence[str], folder: Path, *, wait: bool) -> int:
    """Runs `python launch.py ARGUMENTS` on the cluster, from a copy of `folder`.

    Returns:
        The command's own exit code; 0 at once without `wait`.

    Raises:
        UserError: no cluster is named, or it refuses.
        JobError: the job ended without an exit code of its own, or can't be followed to its end.
    """
    client, address = _client()
    try:
        job = client.submit_job(
            entrypoint=shlex.join(["python", "launch.py", *arguments]),
            runtime_env={
                "working_dir": str(folder),
                "excludes": EXCLUDED,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the cluster at {address} did not take the job: {' '.join(str(error).split())[:300]}; "
            f"if {folder} is too large to travel, move data and videos out of it"
        ) from error
    how = f"ray job stop --address {address} {job}"
    tqdm.write(f"job {job} is submitted; to stop it with a checkpoint: {how}")
    if not wait:
        return 0
    try:
        info = _follow(client, job)
    except KeyboardInterrupt:
        tqdm.write(f"the job goes on; to stop it with a checkpoint: {how}")
        raise
    except _LostError as error:
        again = f"ray job logs --address {address} --follow {job}"
        raise JobError(
            f"job {job} could not be followed for {_LOST_S:g} s ({error}); it may go on at "
            f"{address}: to follow it, {again}; to stop it with a checkpoint, {how}"
        ) from error
    return _exit_code(info, job)


def _client() -> tuple[JobSubmissionClient, str]:
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    if not address:
        raise UserError(
            "no cluster is named: set RAY_API_SERVER_ADDRESS to its dashboard, such as "
            "http://127.0.0.1:8265 (`ray start --head` prints it)"
        )
    try:
        return JobSubmissionClient(address), address
    except AuthenticationError as error:
        raise UserError(
            f"the cluster at {address} asks for its token: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to the file that holds it"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the cluster at {address} can't be reached: {str(error).splitlines()[0]}; correct "
            "RAY_API_SERVER_ADDRESS, or forward the dashboard's port"
        ) from error


def _follow(client: JobSubmissionClient, job: str) -> Any:
    """Prints what the job prints until it has ended; a stream that breaks is taken up there.

    Returns:
        What the cluster knows of the job then.

    Raises:
        _LostError: the cluster no longer answers.
    """
    log = _Log()
    answered = time.monotonic()
    while True:
        try:
            asyncio.run(log.print(client, job))
            info = client.get_job_info(job)
            if info.status.is_terminal():
                return info
            answered = time.monotonic()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if time.monotonic() - answered > _LOST_S:
                raise _LostError(" ".join(str(error).split())[:200]) from error
        time.sleep(_AGAIN_S)


class _Log:
    """A job's output, each character printed once."""

    def __init__(self) -> None:
        self.printed = 0

    async def print(self, client: JobSubmissionClient, job: str) -> None:
        """To the end of the stream, which begins with the job's first line each time."""
        begin = 0
        async for text in client.tail_job_logs(job):
            print(text[max(self.printed - begin, 0) :], end="", flush=True)
            begin += len(text)
            self.printed = max(self.printed, begin)


def _exit_code(info: Any, job: str) -> int:
    if info.driver_exit_code is not None and info.driver_exit_code >= 0:
        return int(info.driver_exit_code)
    if info.status == JobStatus.STOPPED:
        raise JobError(f"job {job} was stopped: {info.message}")
    raise JobError(f"job {job} has {info.status.value.lower()}: {info.message}")
