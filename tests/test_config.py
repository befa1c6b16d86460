"""The configuration tree: presets that build, strict keys, and refusals that name the key."""

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel

from distgan import config as config_module
from distgan.config import Config
from distgan.config_checks import check_config
from distgan.config_loading import (
    build_config,
    dump_yaml,
    flatten,
    load_config,
    parse_yaml,
    with_values,
)
from distgan.config_section import Section
from distgan.discriminator import Discriminator
from distgan.errors import UserError
from distgan.generator import Generator
from distgan.presets import PRESETS

NAMES = ["default", *PRESETS]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", ["none", "prediction"])
def test_every_preset_checks_and_its_networks_run_on_the_meta_device(
    name: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The meta device knows no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    config = load_config(name, overrides=[f"conditioning.task={task}"])
    check_config(config)
    size, frames = config.data.resolution, config.data.clip_frames
    with torch.device("meta"):
        generator = Generator(config.model, size, frames, task == "prediction")
        discriminator = Discriminator(config.model, size, frames)
        latent = torch.empty(2, config.model.generator.latent_dim)
        given = (torch.empty(2, 3, frames, size, size), torch.empty(2, 1, frames, size, size))
    video = generator(latent, *(given if task == "prediction" else ()))
    assert video.shape == (2, 3, frames, size, size)
    assert discriminator(video).shape == (2,)


@pytest.mark.parametrize("name", NAMES)
def test_preset_keys_arrive(name: str) -> None:
    config = load_config(name)
    flat = flatten(config)
    assert config.preset == name
    for key, value in PRESETS.get(name, {}).items():
        assert flat[key] == value, key
    untouched = flat.keys() - PRESETS.get(name, {}).keys() - {"preset"}
    defaults = flatten(Config())
    assert {key: flat[key] for key in untouched} == {key: defaults[key] for key in untouched}


@pytest.mark.parametrize("name", NAMES)
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    config = with_values(
        load_config(name, overrides=["seed=7", "stop.target=1.5"]), {"run.dir": "a b: #c\n"}
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    assert load_config(file=file) == config
    assert build_config(parse_yaml(dump_yaml(config), "text")) == config


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("preset: demo\nmodel: {attention: {heads: 2}}\ntrain: {max_steps: 5}\n")
    config = load_config(file=file, overrides=["train.max_steps=6"])
    assert config.preset == "demo" and config.data.resolution == 32
    assert config.model.attention.heads == 2 and config.model.attention.head_dim == 32
    assert config.train.max_steps == 6


def test_overrides_have_the_types_of_their_keys() -> None:
    config = load_config(
        overrides=[
            "optim.generator.lr=1e-4",
            "optim.discriminator.lr=3E-5",
            "data.random_stride=true",
            "model.attention.resolutions=[16, 8]",
            "model.attention.kind=none",
            "stop.target=null",
            "stop.sign_bounds=[0.2, 0.9]",
            "run.dir=a=b",
        ]
    )
    assert config.optim.generator.lr == 1e-4 and config.optim.discriminator.lr == 3e-5
    assert config.data.random_stride is True
    assert config.model.attention.resolutions == (16, 8)
    assert config.model.attention.kind == "none" and config.stop.target is None
    assert config.stop.sign_bounds == (0.2, 0.9)
    assert config.run.dir == "a=b"


def test_learning_rate_in_a_file_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("optim: {generator: {lr: 1e-4}}\n")
    assert load_config(file=file).optim.generator.lr == 1e-4


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("sed=1", "'seed'"),
        ("modle.patch=2", "'model'"),
        ("model.atention.kind=none", "'model.attention'"),
        ("model.attention.head=2", "'model.attention.heads'"),
        ("optim.generator.learning_rate=1", "'optim.generator.lr"),
        ("optim.generator.l=1", "'optim.generator.lr'"),
        ("prepare.denoise.strenght=1", "'prepare.denoise.strength'"),
        ("train.augment.flipp=true", "'train.augment.flip'"),
        ("attention.kind=none", "'model.attention'"),
        ("train.=1", "'train.'"),
        ("=1", "''"),
    ],
)
def test_unknown_keys_name_the_nearest(override: str, hint: str) -> None:
    with pytest.raises(UserError, match="unknown configuration key") as raised:
        load_config(overrides=[override])
    assert hint in str(raised.value)
    tree: dict[str, Any] = {}
    *parents, leaf = override.partition("=")[0].split(".")
    inner = tree
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[leaf] = 1
    with pytest.raises(UserError, match="unknown configuration key"):
        build_config(tree)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model.patch", "9" * 4300),
        ("model.patch", "0x" + "f" * 9000),  # Python writes no number of so many digits
        ("seed", str(2**63)),
        ("model.generator.channels", str([16] * 65)),
        ("model.attention.resolutions", f"[{2**63}]"),
    ],
)
def test_what_no_message_could_quote_is_refused(key: str, text: str) -> None:
    with pytest.raises(UserError, match=rf"bad configuration value: {key}=") as raised:
        load_config(overrides=[f"{key}={text}"])
    assert len(str(raised.value)) < 200
    assert load_config(overrides=[f"seed={2**63 - 1}"]).seed == 2**63 - 1


@pytest.mark.parametrize(
    "override",
    [
        "train.batch_size=many",
        "train.batch_size=0",
        "train.batch_size=1.5",
        "train.batch_size=",
        "optim.generator.lr=-1",
        "optim.generator.lr=.nan",
        "optim.generator.lr=.inf",
        "optim.generator.beta1=1",
        "loss.kind=wgan",
        "loss.penalty=r2+r1",
        "data.random_stride=perhaps",
        "model.attention.resolutions=8",
        "model.attention=none",
        "stop.sign_bounds=[0.1]",
        "checkpoint.keep=1",
        "cluster.num_workers=-1",
        "cluster.generator.zero_stage=4",
        "cluster.generator.zero_stage=true",
        "cluster.hang_seconds=1e10",
        "loss.gamma=on",
        "model.attention.window=[yes,3,3]",
        "run.dir=[1]",
    ],
)
def test_wrong_values_name_their_key(override: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(overrides=[override])
    assert override.partition("=")[0] in str(raised.value)


IMPOSSIBLE = [
    ({"data.resolution": 66}, "data.resolution"),
    ({"model.patch": 3}, "data.resolution"),
    ({"model.generator.channels": []}, "model.generator.channels"),
    ({"model.discriminator.channels": [8, 0]}, "model.discriminator.channels"),
    ({"model.temporal_levels": 3}, "model.temporal_levels"),
    ({"model.discriminator.channels": [8]}, "model.temporal_levels"),
    ({"data.clip_frames": 15}, "data.clip_frames"),
    ({"data.clip_frames": 6, "model.temporal_levels": 2}, "data.clip_frames"),
    ({"prepare.stored_frames": 15}, "prepare.stored_frames"),
    ({"prepare.stored_frames": 30, "data.frame_stride": 2}, "prepare.stored_frames"),
    ({"model.attention.head_dim": 31}, "model.attention.head_dim"),
    ({"model.attention.head_dim": 0, "model.attention.heads": 3}, "model.attention.heads"),
    ({"model.attention.head_dim": 0, "model.attention.heads": 128}, "model.attention.heads"),
    ({"model.attention.resolutions": [8, 7]}, "model.attention.resolutions"),
    ({"model.attention.placement": []}, "model.attention.placement"),
    ({"model.attention.placement": ["decoder", "decoder"]}, "model.attention.placement"),
    ({"model.attention.placement": ["encoder"]}, "model.attention.placement"),
    ({"model.attention.resolutions": [8, 8]}, "model.attention.resolutions"),
    ({"train.batch_size": 12}, "data.lanes"),
    ({"train.accumulation": 3}, "train.accumulation"),
    ({"data.num_workers": 9}, "data.num_workers"),
    ({"conditioning.task": "prediction", "conditioning.context_frames": 16}, "context_frames"),
    ({"stop.sign_bounds": [0.9, 0.1]}, "stop.sign_bounds"),
]


@pytest.mark.parametrize(("values", "key"), IMPOSSIBLE)
def test_impossible_combinations_name_the_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as raised:
        with_values(Config(), values)
    assert key in str(raised.value)
    assert any(
        str(value).split(",")[0].strip("[") in str(raised.value) for value in values.values()
    )


def test_the_edges_of_the_possible_are_allowed() -> None:
    with_values(Config(), {"model.temporal_levels": 2, "data.clip_frames": 4})
    with_values(Config(), {"prepare.stored_frames": 31, "data.frame_stride": 2})
    with_values(Config(), {"model.attention.head_dim": 0, "model.attention.heads": 64})
    with_values(Config(), {"conditioning.task": "prediction", "conditioning.context_frames": 15})
    with_values(Config(), {"train.accumulation": 32, "data.num_workers": 8})
    # Without attention its keys are not looked at.
    with_values(Config(), {"model.attention.kind": "none", "model.attention.resolutions": [7]})


def test_a_preset_that_would_not_be_applied_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--preset"):
        load_config(overrides=["preset=demo"])
    file = tmp_path / "own.yaml"
    file.write_text("preset: small-64\n")
    with pytest.raises(UserError, match="small-64"):
        load_config("demo", file)
    assert load_config("small-64", file).preset == "small-64"


@pytest.mark.parametrize(
    "text",
    ["preset: dem", "preset: [demo]", "preset: {a: 1}", "- 1", "a: [", "model:", "1: 2", "seed: x"],
)
def test_unusable_files_are_user_errors(text: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(UserError):
        load_config(file=file)


def test_missing_and_binary_files_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("none.yaml", "binary", "."):
        with pytest.raises(UserError, match="can't read"):
            load_config(file=tmp_path / name)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="'small-64'"):
        load_config("smal-64")


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="key=value"):
        load_config(overrides=["seed"])


def test_the_article_preset_has_the_article_s_numbers() -> None:
    config = load_config("article")
    assert config.data.resolution == 224
    attention = config.model.attention
    assert (attention.kind, attention.heads, attention.head_dim) == ("self", 8, 256)
    for optim in (config.optim.generator, config.optim.discriminator):
        assert (optim.kind, optim.lr, optim.clip_norm) == ("adam", 1e-3, 1.0)
        assert (optim.beta1, optim.beta2, optim.schedule) == (0.9, 0.999, "constant")
    assert config.loss.kind == "bce" and config.loss.penalty == "none"
    assert config.stop.max_epochs == 100


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.batch_size = 3  # type: ignore[misc]


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, section in inspect.getmembers(config_module, inspect.isclass):
        if issubclass(section, Section) and section is not Section:
            yield name, section


@pytest.mark.parametrize(("name", "section"), sections())
def test_every_field_has_a_default_and_every_section_says_something(
    name: str, section: type[BaseModel]
) -> None:
    section()
    leaves = {
        key: field
        for key, field in section.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    }
    documented = [key for key, field in leaves.items() if field.description]
    assert not leaves or documented, f"{name} explains none of its keys"
    # What needs no words: a count, a name, or a word of the field's own.
    evident = {
        "heads", "kind", "penalty", "penalty_form", "lr", "beta1", "weight_decay",
        "schedule", "max_steps", "device", "interval_steps", "num_samples",
    }  # fmt: skip
    assert leaves.keys() - documented <= evident


def test_every_section_of_the_tree_is_reachable() -> None:
    reached = set()

    def walk(section: type[BaseModel]) -> None:
        reached.add(section.__name__)
        for field in section.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                walk(field.annotation)

    walk(Config)
    assert reached == {name for name, _ in sections()}


def test_defaults_survive_yaml_as_plain_values() -> None:
    tree = yaml.safe_load(dump_yaml(Config()))
    assert tree["data"]["lanes"] == 8 and tree["loss"]["penalty_form"] == "random_direction"
