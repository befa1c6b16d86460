"""Samples follow from their own seed; an exported generator is whole, fitting, or refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from distgan.adversarial_step import to_float
from distgan.data.conditioning import condition
from distgan.errors import UserError
from distgan.export import TrainedGenerator, export_generator, load_generator
from distgan.networks import build_generator
from distgan.sampling import BATCH_SIZE, Sampler, to_uint8
from tests.checkpoints import save_checkpoint
from tests.damage import flip_bit
from tests.tiny_networks import CPU, randomise, tiny_clips, tiny_config


def trained(values: dict[str, Any] | None = None) -> TrainedGenerator:
    config = tiny_config(values)
    generator = build_generator(config, CPU)
    randomise(generator)
    return TrainedGenerator(generator=generator, config=config, step=12, frame_rate_hz=7.5)


def assert_alike(got: Tensor, wanted: Tensor) -> None:
    """Kernels sum in another order for another batch: a pixel may round to its neighbour."""
    difference = (got.int() - wanted.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("truncation", [1.0, 0.6])
def test_a_seed_gives_its_clip_in_any_batch_and_order(truncation: float) -> None:
    sampler = Sampler(trained().generator, "fp32", truncation=truncation)
    seeds = list(range(BATCH_SIZE + 3))  # more than one batch
    whole = sampler.clips(seeds)
    assert whole.shape == (len(seeds), 3, 4, 16, 16) and whole.dtype == torch.uint8
    assert torch.equal(whole, sampler.clips(seeds))
    assert_alike(sampler.clips(seeds[::-1]).flip(0), whole)
    for seed in (0, BATCH_SIZE + 1):
        assert_alike(sampler.clips([seed]), whole[seed : seed + 1])
    again = Sampler(trained().generator, "fp32", truncation=truncation)
    assert_alike(again.clips([5, 3]), whole[[5, 3]])
    spread = whole.float().std(dim=0).mean()
    assert spread > 1, "all seeds give the same clip"


def test_truncation_pulls_towards_one_clip() -> None:
    generator = trained().generator
    seeds = [0, 1, 2, 3]
    free = Sampler(generator, "fp32").clips(seeds)
    spreads = []
    for truncation in (0.0, 0.5, 1.0):
        clips = Sampler(generator, "fp32", truncation=truncation).clips(seeds)
        spreads.append(clips.float().std(dim=0).mean().item())
        if truncation == 0:
            assert all(torch.equal(clip, clips[0]) for clip in clips)
        if truncation == 1:
            assert torch.equal(clips, free)
    assert spreads[0] == 0 < spreads[1] < spreads[2]


def test_given_videos_belong_to_their_seeds() -> None:
    one = trained({"conditioning.task": "prediction"})
    clips = tiny_clips(one.config, count=BATCH_SIZE + 2)
    given, known = condition(to_float(clips), one.config.conditioning)
    made = Sampler(one.generator, "fp32").clips(range(BATCH_SIZE + 2), given, known)
    assert torch.equal(made[:, :, :2], clips[:, :, :2])
    assert not torch.equal(made[:, :, 2:], clips[:, :, 2:])


def test_bf16_stays_near() -> None:
    generator = trained().generator
    clips = [Sampler(generator, precision).clips([0, 1]).float() for precision in ("fp32", "bf16")]
    assert 0 < (clips[0] - clips[1]).abs().mean() < 3


def test_pixels_are_clamped_and_rounded() -> None:
    values = torch.tensor([-9.0, -1.0, -1 + 0.6 / 127.5, 0.0, 1.0, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 128, 255, 255]


def test_an_export_goes_round(tmp_path: Path) -> None:
    one = trained({"conditioning.task": "prediction", "model.attention.resolutions": [8, 4]})
    folder = export_generator(str(tmp_path), one)
    assert folder == str(tmp_path / "generator")
    for source in (tmp_path, tmp_path / "generator"):  # of the run, or of the export itself
        loaded = load_generator(str(source), CPU)
        assert (loaded.step, loaded.frame_rate_hz) == (12, 7.5)
        assert loaded.config == one.config
        assert not loaded.generator.training
        own = dict(one.generator.named_parameters())
        for name, parameter in loaded.generator.named_parameters():
            assert torch.equal(parameter, own[name]) and not parameter.requires_grad
    assert {file.name for file in Path(folder).iterdir()} == {"model.safetensors", "generator.json"}


def test_a_run_gives_the_average_of_its_newest_checkpoint(tmp_path: Path) -> None:
    one = trained()
    weights = {f"ema/{name}": p.detach() for name, p in one.generator.named_parameters()}
    other = {f"generator/{name.removeprefix('ema/')}": 0 * p for name, p in weights.items()}
    state = {"frame_rate_hz": 8.0, "config": one.config.model_dump(mode="json")}
    save_checkpoint(str(tmp_path), 30, weights | other, state, keep=2)
    loaded = load_generator(str(tmp_path), CPU)
    assert (loaded.step, loaded.frame_rate_hz) == (30, 8.0)
    seeds = [0, 1]
    assert torch.equal(
        Sampler(loaded.generator, "fp32").clips(seeds), Sampler(one.generator, "fp32").clips(seeds)
    )


def test_nothing_to_load_is_a_user_error(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no trained generator"):
            load_generator(str(source), CPU)


def test_every_damage_to_the_weights_is_found(tmp_path: Path) -> None:
    weights = Path(export_generator(str(tmp_path), trained())) / "model.safetensors"
    kept = weights.read_bytes()
    for place in (0, 20, len(kept) // 2, len(kept) - 1):
        weights.write_bytes(kept)
        flip_bit(weights, place, bit=2)
        with pytest.raises(UserError, match="damaged"):
            load_generator(str(tmp_path), CPU)
    weights.write_bytes(kept[:-4])
    with pytest.raises(UserError, match="damaged"):
        load_generator(str(tmp_path), CPU)
    weights.unlink()
    with pytest.raises(UserError, match="can't be read"):
        load_generator(str(tmp_path), CPU)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"weights_sha256": "0"}', "\xff"])
def test_a_damaged_description_is_a_user_error(text: str, tmp_path: Path) -> None:
    folder = Path(export_generator(str(tmp_path), trained()))
    (folder / "generator.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError):
        load_generator(str(tmp_path), CPU)


def change_config(folder: Path, key: str, value: Any) -> None:
    file = folder / "generator.json"
    description = json.loads(file.read_text())
    *parents, leaf = key.split(".")
    tree = description["config"]
    for parent in parents:
        tree = tree[parent]
    tree[leaf] = value
    file.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.generator.channels", [8, 12]),
        ("model.generator.channels", [8, 16, 16]),
        ("model.generator.channels", []),
        ("model.generator.latent_dim", 9),
        ("model.temporal_levels", 7),
        ("model.attention.head_dim", 3),
        ("model.attention.kind", "none"),
        ("conditioning.task", "prediction"),
        ("data.resolution", 32),
        ("data.resolution", "large"),
        ("no_such_key", 1),
    ],
)
def test_weights_that_do_not_fit_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    folder = Path(export_generator(str(tmp_path), trained()))
    change_config(folder, key, value)
    with pytest.raises(UserError):
        load_generator(str(tmp_path), CPU)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:

    folder = Path(export_generator(str(tmp_path), trained()))
    data = save({"unknown": torch.zeros(2)})
    (folder / "model.safetensors").write_bytes(data)
    description = json.loads((folder / "generator.json").read_text())
    description["weights_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "generator.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="do not fit"):
        load_generator(str(tmp_path), CPU)
