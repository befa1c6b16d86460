"""`launch.py doctor`: what this machine has, and what a configuration needs of it."""

import importlib.metadata
import os
import platform
import shutil
import time

import torch

from distgan import storage
from distgan.config import Config
from distgan.costs import network_costs
from distgan.data.manifest import read_manifest
from distgan.data.stream import check_fits
from distgan.errors import UserError
from distgan.precision import measure_precisions, pick_device

PACKAGES = ("torch", "numpy", "av", "webdataset", "fsspec", "s3fs", "safetensors", "tensorboard")

MOST_RETRY_SECONDS = 10.0


def report(config: Config) -> str:
    """A table of findings; that it comes at all means that nothing here is wrong.

    Raises:
        UserError: the run folder can't be written, the data set does not fit, or a device is asked
            for that is not here.
        StorageError: object storage does not answer, or only with errors.
    """
    # A doctor's patient should hear soon that the storage does not answer.
    retry_seconds = min(config.storage.retry_seconds, MOST_RETRY_SECONDS)
    storage.configure(config.storage.model_copy(update={"retry_seconds": retry_seconds}))
    lines = [f"python       {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name:<12} {importlib.metadata.version(name)}" for name in PACKAGES]
    device = pick_device(config.train.device)
    lines.append(f"device       {_describe(device)}")
    seconds = measure_precisions(device)
    ratio = seconds["fp32"] / seconds["bf16"]
    lines.append(f"bf16         {ratio:.2f} times as fast as fp32 on a small convolution")
    lines.append(f"run folder   {_check_writable(config.run.dir)}")
    lines.append(f"data set     {_check_data(config)}")
    lines.append(str(network_costs(config)))
    return "\n".join(lines)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads in use"


def _check_writable(run_dir: str) -> str:
    """Writes and reads a file, locally beside the run folder, so that an empty one stays empty."""
    if not storage.is_local(run_dir):
        return _check_reachable(run_dir)
    if storage.local_path(run_dir).is_file():
        raise UserError(f"run.dir={run_dir} is a file; choose another folder")
    parent = os.path.dirname(run_dir)  # noqa: PTH120 (a path or a URL)
    existed = storage.exists(parent)
    probe = storage.join(parent, ".distgan-doctor")
    try:
        storage.write_bytes(probe, b"ok")
        assert storage.read_bytes(probe) == b"ok"
        free_gib = shutil.disk_usage(parent).free / 2**30
        storage.remove(probe)
    except OSError as error:
        raise UserError(
            f"run.dir={run_dir}: its parent folder can't be written ({error.strerror}); "
            "choose another run.dir"
        ) from error
    note = "" if existed else " (the parent folder was created)"
    return f"{run_dir} can be written, {free_gib:.1f} GiB free{note}"


def _check_reachable(url: str) -> str:
    """Writes, reads and removes an object below a URL, which leaves no trace there."""
    probe, start = storage.join(url, ".distgan-doctor"), time.monotonic()
    storage.write_bytes(probe, b"ok")
    if storage.read_bytes(probe) != b"ok":
        raise UserError(f"run.dir={url}: the storage gives back other bytes than were written")
    storage.remove(probe)
    took_ms = (time.monotonic() - start) * 1e3
    return f"{url} can be reached, written and read ({took_ms:.0f} ms)"


def _check_data(config: Config) -> str:
    folder = config.data.shards
    if not folder:
        return "data.shards is not set"
    manifest, _ = read_manifest(folder)
    check_fits(manifest, config.data, folder)
    for shard in manifest.shards[:1]:
        try:
            size = storage.size(storage.join(folder, shard.name))
        except FileNotFoundError:
            size = 0
        if size != shard.bytes:
            raise UserError(
                f"the shard {folder}/{shard.name} has {size} bytes instead of {shard.bytes}; copy "
                f"it again from where it was prepared (`launch.py data verify --data {folder}` "
                "checks them all)"
            )
    return f"{folder}: {manifest.samples} clips in {len(manifest.shards)} shards"
