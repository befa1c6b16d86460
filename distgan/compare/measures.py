"""What is measured of a finished run, beside what it logged: written once, into its own folder."""

import json
import resource
from typing import Any

import torch
from torch import Tensor

from distgan import storage
from distgan.config import Config
from distgan.data.conditioning import condition
from distgan.data.stream import ClipStream
from distgan.errors import DivergedError
from distgan.export import load_generator
from distgan.metrics.proxy import ProxyDistance, valid_share
from distgan.networks import build_generator
from distgan.precision import pick_device
from distgan.run_folder import diverged_step, refuse_if_diverged
from distgan.sampling import Sampler

MEASURED = "measured.json"
QUALITY, COMPUTE = "quality/proxy_frechet_ema", "time/compute_total_s"

Facts = dict[str, Any]


def is_measured(run_dir: str) -> bool:
    return storage.exists(storage.join(run_dir, MEASURED))


def read_measured(run_dir: str) -> Facts:
    facts: Facts = json.loads(storage.read_bytes(storage.join(run_dir, MEASURED)))
    return facts


def measure_run(config: Config, *, demo_data: bool) -> Facts:
    """Measures the run in `config.run.dir`, which has ended, and writes `measured.json` there.

    All runs with the same data and `log.proxy_clips` are measured on the same real clips, and their
    generators are given the same noise. Clips that lie between those real ones give the floor.

    Returns:
        `diverged`: None, or `step` and `reason`; `proxy_frechet` and, on the demo's data,
        `valid_share`: numbers for `real`, `untrained` and `generated` (not of a diverged run).
    """
    device = pick_device(config.train.device)
    count = config.log.proxy_clips
    stream = ClipStream(
        config.data.shards, config.data, seed=config.seed, batch_size=config.train.batch_size
    )
    real = stream.reference_clips(count)
    proxy = ProxyDistance(real, device=device)
    precision = config.train.precision
    sets = {
        "real": stream.reference_clips(2 * count)[1::2],
        "untrained": _clips(Sampler(build_generator(config, device), precision), config, real),
    }
    diverged = divergence(config.run.dir)
    if diverged is None:
        trained = load_generator(config.run.dir, device)
        sets["generated"] = _clips(Sampler(trained.generator, precision), config, real)
    facts = {
        "diverged": diverged,
        "proxy_frechet": {name: proxy.distance(clips) for name, clips in sets.items()},
        "valid_share": {name: valid_share(c) for name, c in sets.items()} if demo_data else None,
        "peak_memory_gib": peak_memory_gib(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
    text = json.dumps(facts, indent=1)
    storage.write_bytes(storage.join(config.run.dir, MEASURED), text.encode())
    return facts


def divergence(run_dir: str) -> Facts | None:
    """Where and why a run diverged; None if it did not."""
    try:
        refuse_if_diverged(run_dir)
    except DivergedError as error:
        return {"step": diverged_step(run_dir), "reason": str(error)}
    return None


def peak_memory_gib(device: torch.device) -> float:
    """Of this process until now: on a GPU what tensors took there, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_resident_bytes() / 2**30


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _clips(sampler: Sampler, config: Config, real: Tensor) -> Tensor:
    """As a run's own evaluation draws them: seeds 0, 1, 2, ..., on what these real clips give."""
    given, known = condition(real.float() / 127.5 - 1, config.conditioning)
    return sampler.clips(range(len(real)), given, known)
