"""Pictures of where a generator's attention looks: chosen tokens of a clip, and what they take.

Shapes: C channels, T frames, H, W, Q chosen tokens, L tokens of a grid (t, h, w).
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from distgan import storage
from distgan.attention import AttentionLayer, Grid
from distgan.blocks import normalise_channels
from distgan.config import Config
from distgan.errors import UserError
from distgan.pictures import enlarge, grid, write_mp4
from distgan.sparsity import three

PREFIX = "attention_"
NUM_TOKENS = 4
FRAME_PIXELS = 96  # least height of a frame in the pictures
SCALE = (160, 14)  # width and height of the colour scale, in pixels
_PAPER, _INK, _MARK = (250, 250, 250), (40, 40, 40), (0, 255, 120)
Video = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """Where the chosen tokens of one layer look, mean of its heads."""

    name: str
    grid: Grid
    places: tuple[int, ...]
    weights_QL: NDArray[np.float32]
    """Rows sum to 1."""


def check_shows_attention(config: Config) -> None:
    """Raises `UserError` if no layer of the generator lets tokens look at each other."""
    attention = config.model.attention
    if attention.kind in ("none", "additive"):
        raise UserError(
            f"--show-attention: this generator has model.attention.kind={attention.kind}, in which "
            "no token looks at another; leave it out, or train with dense, self, factorised, "
            "window or sparse"
        )
    if set(attention.placement) == {"discriminator"}:
        raise UserError(
            "--show-attention: this run has model.attention.placement=['discriminator'], and the "
            "generator no attention; leave it out, or train with decoder in it"
        )


def check_pixels(config: Config, pixels: Sequence[Grid], show_attention: bool) -> None:
    """Raises `UserError` if some (frame, row, column) is not in the clips, or nothing is shown."""
    if not show_attention:
        raise UserError("--attention-at chooses for --show-attention; give both or neither")
    size = config.data.resolution
    for pixel in pixels:
        ends = (config.data.clip_frames, size, size)
        if not all(0 <= place < end for place, end in zip(pixel, ends, strict=True)):
            raise UserError(
                f"--attention-at {','.join(map(str, pixel))} is not in the videos; take a frame "
                f"from 0 to {ends[0] - 1}, a row and a column from 0 to {size - 1}"
            )


def token_over(pixel: Grid, grid: Grid, video: Grid) -> int:
    """The number of the token that stands over a pixel (frame, row, column) of a video."""
    t, h, w = (p * n // size for p, n, size in zip(pixel, grid, video, strict=True))
    return (t * grid[1] + h) * grid[2] + w


@contextlib.contextmanager
def recorded_layers(generator: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While inside, the first clip's input (1, t, h, w, C) of each attention layer, by name."""
    inputs: dict[str, Tensor] = {}
    handles = []
    for name, part in generator.named_modules():
        if isinstance(part, AttentionLayer):

            def note(part: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                inputs[name] = given[0][:1].detach()

            handles.append(part.register_forward_pre_hook(note))
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def looks_of(
    generator: nn.Module,
    inputs: dict[str, Tensor],
    clip_THWC: Video,
    pixels: Sequence[Grid] | None = None,
) -> list[Look]:
    """Of every layer; a factorised one has two, in space and in time.

    Args:
        pixels: (frame, row, column) in the clip, whose tokens are chosen; None: striking ones.
    """
    found = []
    for name, x_BTHWC in inputs.items():
        layer = generator.get_submodule(name)
        assert isinstance(layer, AttentionLayer)
        _, t, h, w, _ = x_BTHWC.shape
        places = striking_places(clip_THWC, (t, h, w))
        if pixels is not None:
            size = three(clip_THWC.shape[:3])
            places = list(dict.fromkeys(token_over(pixel, (t, h, w), size) for pixel in pixels))
        tokens_BLE = normalise_channels(x_BTHWC.float()).flatten(1, 3)
        places_Q = torch.tensor(places, device=tokens_BLE.device)
        looks: dict[str, Tensor] = layer.mix.looks(tokens_BLE, (t, h, w), places_Q)  # type: ignore[operator]
        for part, weights in looks.items():
            label = name.replace(".attention.0", "").replace(".", "_") + (
                f"_{part}" if part else ""
            )
            if not label.startswith("encoder"):
                label = f"decoder_{label}"
            mean_QL = weights[0].mean(dim=0).cpu().numpy()
            found.append(Look(label, (t, h, w), tuple(places), mean_QL))
    return found


def striking_places(clip_THWC: Video, grid: Grid, count: int = NUM_TOKENS) -> list[int]:
    """Tokens of the middle frame over the pixels farthest from its mean colour, apart from each
    other where there is room."""
    t, h, w = grid
    middle = clip_THWC[_frame_of(t // 2, t, len(clip_THWC))].astype(np.float32)
    distance = torch.from_numpy(np.abs(middle - middle.mean(axis=(0, 1))).sum(axis=2))
    strength = F.adaptive_avg_pool2d(distance[None], (h, w))[0]
    rows, columns = torch.arange(h)[:, None], torch.arange(w)
    chosen: list[int] = []
    while len(chosen) < min(count, h * w):
        place = int(strength.argmax())
        row, column = divmod(place, w)
        chosen.append((t // 2 * h + row) * w + column)
        near = ((rows - row).abs() <= h // 4) & ((columns - column).abs() <= w // 4)
        strength[near] -= 1e4  # taken last, and the nearest of all
        strength[row, column] = -torch.inf
    return chosen


def write_maps(looks: list[Look], clip_THWC: Video, folder: str, rate_hz: float) -> list[str]:
    """A picture and a video a layer: attention_NAME.png and .mp4; returns the pictures' names."""
    names = []
    for look in looks:
        overlays = [overlay(look, number, clip_THWC) for number in range(len(look.places))]
        picture = storage.join(folder, f"{PREFIX}{look.name}.png")
        _write_png(picture, look, overlays)
        panels = grid(np.stack(overlays), gap=4)
        write_mp4(storage.join(folder, f"{PREFIX}{look.name}.mp4"), panels, rate_hz, least_size=256)
        names.append(picture)
    return names


def overlay(look: Look, number: int, clip_THWC: Video) -> Video:
    """The clip in grey, brighter and coloured where the token takes more; the token in a box.

    The brightest colour is the token's largest weight in all frames.
    """
    t, h, w = look.grid
    frames = enlarge(clip_THWC, FRAME_PIXELS)
    size = frames.shape[1:3]
    heat_THW = (look.weights_QL[number] / look.weights_QL[number].max()).reshape(look.grid)
    large = F.interpolate(torch.from_numpy(heat_THW)[:, None], size, mode="nearest")[:, 0].numpy()
    heat = large[[frame * t // len(frames) for frame in range(len(frames))]][..., None]
    grey = 40 + frames.astype(np.float32).mean(axis=-1, keepdims=True) * 0.6
    mixed = _coloured(grey, heat)
    frame, row, column = np.unravel_index(look.places[number], look.grid)
    top, bottom = int(row) * size[0] // h, (int(row) + 1) * size[0] // h - 1
    left, right = int(column) * size[1] // w, (int(column) + 1) * size[1] // w - 1
    for index in range(len(frames)):
        if index * t // len(frames) == frame:
            picture = Image.fromarray(mixed[index])
            ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline=_MARK, width=2)
            mixed[index] = np.asarray(picture)
    return mixed


def _coloured(grey: NDArray[np.float32], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(..., 1) grey values, brighter and more coloured with the heat, 0 to 1: (..., 3)."""
    colour = mpl.colormaps["inferno"](0.3 + 0.7 * heat[..., 0])[..., :3].astype(np.float32) * 255
    mixed: NDArray[np.uint8] = (grey + (colour - grey) * 0.75 * heat).round().astype(np.uint8)
    return mixed


def _scale() -> Image.Image:
    """What the colours stand for, from none to the token's largest weight, on middle grey."""
    heat = np.tile(np.linspace(0, 1, SCALE[0], dtype=np.float32), (SCALE[1], 1))[..., None]
    return Image.fromarray(_coloured(np.full_like(heat, 115), heat))


def _frame_of(step: int, steps: int, frames: int) -> int:
    """The first of the clip's frames that a step of the grid stands for."""
    return -(-step * frames // steps)


def _write_png(path: str, look: Look, overlays: list[Video]) -> None:
    """A row a token: the clip's frames, one for each step of the grid; below them the scale."""
    t = look.grid[0]
    gap, heading = 3, 22
    height, width = overlays[0].shape[1:3]
    shape = (t * (width + gap) + gap, len(overlays) * (height + heading) + 2 * heading + gap)
    sheet = Image.new("RGB", (max(shape[0], 560), shape[1]), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    title = (
        f"{look.name}: {' x '.join(map(str, look.grid))} tokens, mean of the heads, time runs right"
    )
    draw.text((gap, 2), title, fill=_INK, font=font)
    for number, video in enumerate(overlays):
        top = heading + number * (height + heading)
        draw.text((gap, top + 3), _caption(look, number), fill=_INK, font=font)
        for step in range(t):
            frame = video[_frame_of(step, t, len(video))]
            position = (gap + step * (width + gap), top + heading)
            sheet.paste(Image.fromarray(frame), position)
    top = shape[1] - heading
    sheet.paste(_scale(), (gap, top + 4))
    says = "weight: 0 to the largest of the row's token, in all frames"
    draw.text((2 * gap + SCALE[0], top + 3), says, fill=_INK, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    storage.write_bytes(path, buffer.getvalue())


def _caption(look: Look, number: int) -> str:
    weights = look.weights_QL[number]
    frame, row, column = (int(i) for i in np.unravel_index(look.places[number], look.grid))
    seen = int((weights > 0).sum())
    return (
        f"token at frame {frame}, row {row}, column {column} (box): sees {seen} of {weights.size}, "
        f"largest weight {weights.max():.2%}, {weights.max() * seen:.1f} times an even share"
    )
