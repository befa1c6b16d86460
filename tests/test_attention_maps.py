"""Pictures of attention: right weights, right places, and a clear no where there is nothing."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from distgan.attention import AttentionLayer
from distgan.attention_maps import (
    SCALE,
    Look,
    looks_of,
    overlay,
    recorded_layers,
    striking_places,
    write_maps,
)
from distgan.blocks import normalise_channels
from distgan.errors import UserError
from distgan.export import TrainedGenerator, export_generator
from distgan.generate import generate
from distgan.networks import build_generator
from tests.tiny import launch
from tests.tiny_networks import CPU, randomise, tiny_config


def exported(folder: Path, values: dict[str, Any]) -> str:
    config = tiny_config({"data.clip_frames": 8} | values)
    generator = build_generator(config, CPU)
    randomise(generator)
    made = TrainedGenerator(generator=generator, config=config, step=3, frame_rate_hz=8.0)
    export_generator(str(folder), made)
    return str(folder)


def test_generate_draws_a_picture_and_a_video_a_layer(tmp_path: Path) -> None:
    values = {
        "model.attention.kind": "factorised",
        "model.attention.resolutions": [8, 4],
        "conditioning.task": "none",
    }
    run, out = exported(tmp_path / "run", values), tmp_path / "out"
    done = launch("generate", "--run", run, "--output", str(out), "--num", "1", "--show-attention",
                  "--attention-at", "0,0,0", "3,9,9", "7,15,15")  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {f"attention_decoder_levels_{n}_{p}" for n in (0, 1) for p in ("space", "time")}
    assert {p.stem for p in out.glob("attention_*.png")} == names
    assert {p.stem for p in out.glob("attention_*.mp4")} == names
    assert "attention_decoder_levels_0_space.png" in done.stdout
    with av.open(str(out / "attention_decoder_levels_0_time.mp4")) as video:
        assert len(list(video.decode(video=0))) == 8
    picture = Image.open(io.BytesIO((out / "attention_decoder_levels_1_space.png").read_bytes()))
    assert picture.width >= 4 * 96 and 3 * 96 <= picture.height < 4 * 96 + 3 * 22
    # Another call in the same folder replaces all of it, pictures of attention too.
    generate(run, str(out), num=1, seed=5)
    assert sorted(p.name for p in out.iterdir()) == [
        "contact_sheet.png", "generated.json", "samples.gif", "video_000005.mp4",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["dense", "self", "factorised", "window", "sparse"])
def test_looks_are_the_weights_that_the_layer_mixes_by(kind: str) -> None:
    config = tiny_config(
        {"model.attention.kind": kind, "model.attention.heads": 1, "data.clip_frames": 8}
        | {"model.attention.window": [3, 3, 3]}
    )
    generator = build_generator(config, CPU)
    randomise(generator)
    with recorded_layers(generator) as inputs, torch.no_grad():
        video = generator(torch.randn(2, 8))
    clip = ((video[0].permute(1, 2, 3, 0).clamp(-1, 1) + 1) * 127).byte().numpy()
    looks = looks_of(generator, inputs, clip)
    assert len(looks) == (2 if kind == "factorised" else 1)
    for look in looks:
        assert look.grid == (4, 4, 4) and len(set(look.places)) == 4
        np.testing.assert_allclose(look.weights_QL.sum(axis=1), 1, rtol=1e-5)
    if kind == "factorised":
        return
    # A value that is 1 at one token alone comes out as what each token takes of it.
    (name,) = inputs
    layer = generator.get_submodule(name)
    assert isinstance(layer, AttentionLayer)
    tokens = normalise_channels(inputs[name]).flatten(1, 3)
    q, k, _ = layer.mix.heads_of(tokens, (4, 4, 4))  # type: ignore[operator]
    for source in (0, 21, 63):
        v = torch.zeros_like(k)
        v[:, :, source] = 1
        taken = layer.mix.attend(q, k, v, (4, 4, 4))[0, 0, :, 0]  # type: ignore[operator]
        got = torch.from_numpy(looks[0].weights_QL[:, source])
        torch.testing.assert_close(got, taken[list(looks[0].places)], rtol=1e-4, atol=1e-6)


def test_the_overlay_is_bright_where_the_weight_is() -> None:
    weights = np.full((1, 2 * 4 * 4), 1e-3, dtype=np.float32)
    weights[0, 16 + 5] = 1  # frame 1 of 2, row 1, column 1
    look = Look("x", (2, 4, 4), (2,), weights)  # the token: frame 0, row 0, column 2
    clip = np.full((4, 16, 16, 3), 100, dtype=np.uint8)
    shown = overlay(look, 0, clip).astype(int)
    assert shown.shape == (4, 96, 96, 3)
    bright = np.abs(shown - shown[2, -1, -1]).sum(axis=-1) > 100
    assert bright[2:, 24:48, 24:48].all(), "the cell in both frames that the step stands for"
    boxed = (shown == (0, 255, 120)).all(axis=-1)
    assert boxed[:2, 0, 48:72].all() and not boxed[2:].any() and not boxed[:, :, :47].any()
    bright[2:, 24:48, 24:48] = False
    assert not (bright & ~boxed).any()


def test_the_scale_ends_in_the_colour_of_the_largest_weight(tmp_path: Path) -> None:
    weights = np.full((1, 2 * 4 * 4), 1e-3, dtype=np.float32)
    weights[0, 16 + 5] = 0.969
    look = Look("x", (2, 4, 4), (2,), weights)
    clip = np.full((4, 16, 16, 3), 125, dtype=np.uint8)
    (path,) = write_maps([look], clip, str(tmp_path), 8.0)
    picture = np.asarray(Image.open(path)).astype(int)
    strip = picture[-8, 3 : 3 + SCALE[0]]
    brightest = overlay(look, 0, clip)[2, 30, 30].astype(int)
    assert (strip[-1] == brightest).all() and (strip[0] == 115).all()
    assert (np.diff(strip[:, 0]) >= 0).all(), "ever warmer"


def test_striking_places_lie_on_what_stands_out_and_apart() -> None:
    clip = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    clip[2, 4:8, 4:8], clip[2, 20:24, 28:32] = 255, 200
    places = striking_places(clip, (2, 8, 8))
    assert places[:2] == [64 + 9, 64 + 47] and len(set(places)) == 4
    assert striking_places(clip, (1, 1, 2)) and len(striking_places(clip, (1, 1, 2))) == 2


def test_chosen_pixels_are_the_tokens_over_them(tmp_path: Path) -> None:
    config = tiny_config({"data.clip_frames": 8})
    generator = build_generator(config, CPU)
    with recorded_layers(generator) as inputs, torch.no_grad():
        generator(torch.randn(1, 8))
    clip = np.zeros((8, 16, 16, 3), dtype=np.uint8)  # over a grid of 4 x 4 x 4
    pixels = [(0, 0, 0), (1, 3, 3), (7, 15, 15), (2, 4, 8)]
    (look,) = looks_of(generator, inputs, clip, pixels)
    assert look.places == (0, 63, 16 + 4 + 2)
    run = exported(tmp_path / "run", {})
    for pixel, shown, said in (((8, 0, 0), True, "from 0 to 7"), ((0, 0, 16), True, "from 0 to 15"),
                               ((0, 0, -1), True, "from 0 to 15"),
                               ((0, 0, 0), False, "give both")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            generate(run, str(tmp_path / "out"), num=1, seed=0, show_attention=shown,
                     attention_at=[pixel])  # fmt: skip
    done = launch("generate", "--run", run, "--output", "x", "--show-attention",
                  "--attention-at", "1,2")  # fmt: skip
    assert done.returncode == 2 and "'1,2' is not like 0,16,16" in done.stderr


@pytest.mark.parametrize(("values", "said"), [
    ({"model.attention.kind": "none"}, "kind=none"),
    ({"model.attention.kind": "additive"}, "kind=additive"),
    ({"model.attention.placement": ["discriminator"]}, "decoder"),
])  # fmt: skip
def test_nothing_to_show_is_refused(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = exported(tmp_path / "run", values)
    with pytest.raises(UserError, match=said):
        generate(run, str(tmp_path / "out"), num=1, seed=0, show_attention=True)
    assert not (tmp_path / "out").exists()
