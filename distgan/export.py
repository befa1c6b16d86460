"""An exported generator: weights as safetensors beside a JSON description. No pickle.

`generator/model.safetensors` and `generator/generator.json` suffice to make videos anywhere.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from tqdm import tqdm

from distgan import storage
from distgan.checkpoint import load_newest, parse_tensors
from distgan.config import Config
from distgan.config_checks import check_config
from distgan.config_loading import build_config
from distgan.ema import EMA
from distgan.errors import UserError
from distgan.generator import Generator
from distgan.networks import build_generator, generator_shapes
from distgan.strict_json import parse_object

FOLDER, WEIGHTS, DESCRIPTION = "generator", "model.safetensors", "generator.json"


@dataclass(frozen=True, kw_only=True)
class TrainedGenerator:
    generator: Generator
    config: Config
    step: int
    frame_rate_hz: float


def export_generator(run_dir: str, trained: TrainedGenerator) -> str:
    """Writes the export into the run folder and returns its own folder."""
    folder = storage.join(run_dir, FOLDER)
    write_export(folder, trained)
    return folder


def write_export(folder: str, trained: TrainedGenerator) -> None:
    """Writes an export into a folder of its own."""
    tensors = {n: p.detach().cpu().contiguous() for n, p in trained.generator.named_parameters()}
    weights = save_safetensors(tensors)
    description = {
        "format": "distgan-generator",
        "version": 1,
        "step": trained.step,
        "frame_rate_hz": trained.frame_rate_hz,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "config": trained.config.model_dump(mode="json"),
    }
    storage.write_bytes(storage.join(folder, WEIGHTS), weights)
    text = json.dumps(description, indent=1)
    storage.write_bytes(storage.join(folder, DESCRIPTION), text.encode())


def load_generator(source: str, device: torch.device) -> TrainedGenerator:
    """The EMA generator of a run's newest checkpoint, or an exported one.

    Args:
        source: a run folder, or a folder with an export.

    Raises:
        UserError: there is neither, or it is damaged.
    """
    checkpoint, problems = load_newest(source)
    for problem in problems:
        tqdm.write(f"damaged checkpoint passed by: {problem}")
    if checkpoint is not None:
        config, rate = _described(checkpoint.state, f"{checkpoint.folder}/state.json")
        weights = {
            name.removeprefix(f"{EMA}/"): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(f"{EMA}/")
        }
        return _trained(weights, config, checkpoint.step, rate, device)
    for folder in (source, storage.join(source, FOLDER)):
        if storage.exists(storage.join(folder, DESCRIPTION)):
            return _load_export(folder, device)
    raise UserError(
        f"no trained generator in {source!r}: it holds neither a complete checkpoint nor "
        f"{FOLDER}/{DESCRIPTION}; give the run folder of `launch.py train`"
    )


def _load_export(folder: str, device: torch.device) -> TrainedGenerator:
    path = storage.join(folder, DESCRIPTION)
    try:
        description = parse_object(storage.read_bytes(path))
        digest, step = description["weights_sha256"], int(description["step"])
        config, rate = _described(description, path)
        data = storage.read_bytes(
            storage.join(folder, WEIGHTS),
            is_right=lambda data: hashlib.sha256(data).hexdigest() == digest,
            max_bytes=_most_bytes(config),
        )
        if hashlib.sha256(data).hexdigest() != digest:
            raise UserError(f"{folder}/{WEIGHTS} is damaged: its sha256 is not that of {path}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the exported generator in {folder} can't be read: {error!r}") from error
    weights = parse_tensors(f"{folder}/{WEIGHTS}", data)
    return _trained(weights, config, step, rate, device)


def _most_bytes(config: Config) -> int:
    """Of a file with this generator's weights in float32, and a header."""
    shapes = generator_shapes(config)
    return sum(4 * math.prod(shape) + 1000 for shape in shapes.values()) + 1000


def _described(facts: Mapping[str, Any], path: str) -> tuple[Config, float]:
    """The configuration and the frame rate (0 where clips keep their own) that a file states."""
    try:
        rate = float(facts["frame_rate_hz"])
        if not (math.isfinite(rate) and 0 <= rate <= 1000):
            raise ValueError(f"frame_rate_hz={rate}")
        if not isinstance(facts["config"], dict):
            raise TypeError("config is no object")
        config = build_config(facts["config"])
        check_config(config)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} does not describe a generator: {error!r}") from error
    except UserError as error:
        raise UserError(f"{path} does not describe a generator: {error}") from error
    return config, rate


def _trained(
    weights: dict[str, torch.Tensor], config: Config, step: int, rate: float, device: torch.device
) -> TrainedGenerator:
    # Compared before any memory is taken: a configuration may ask for any size.
    if generator_shapes(config) != {name: tuple(w.shape) for name, w in weights.items()}:
        raise UserError("the generator's weights do not fit its configuration; export it again")
    generator = build_generator(config, device)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            parameter.copy_(weights[name])
    generator.requires_grad_(False).eval()
    return TrainedGenerator(generator=generator, config=config, step=step, frame_rate_hz=rate)
