"""Whether the attention's options fit the networks; messages name the nearest values that do."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from distgan.config import AttentionConfig, Config
from distgan.errors import UserError
from distgan.sparsity import Grid, block_grid, least_density, near_per_axis, num_seen, window_on


@dataclass(frozen=True)
class Site:
    """A level that gets attention."""

    place: str
    """encoder, decoder or discriminator."""
    width: int
    """Its channels."""
    grid: Grid

    def __str__(self) -> str:
        t, h, w = self.grid
        return f"the {self.place}'s grid of {t} x {h} x {w} (time, height, width)"


def level_resolutions(config: Config) -> tuple[list[int], list[int]]:
    """Feature-map heights of the generator's and the discriminator's levels, finest first."""
    finest = config.data.resolution // config.model.patch
    return (
        [finest // 2**level for level in range(len(config.model.generator.channels))],
        [finest // 2**level for level in range(len(config.model.discriminator.channels))],
    )


def attention_sites(config: Config) -> Iterator[Site]:
    """Where layers stand: in the encoder (if a task builds one), the decoder, the discriminator."""
    model = config.model
    of_generator, of_discriminator = level_resolutions(config)
    for place in model.attention.placement:
        if place == "encoder" and config.conditioning.task == "none":
            continue
        is_generator = place != "discriminator"
        channels = model.generator.channels if is_generator else model.discriminator.channels
        heights = of_generator if is_generator else of_discriminator
        for level, (height, width) in enumerate(zip(heights, channels, strict=True)):
            if height in model.attention.resolutions:
                halved = max(0, level - (len(channels) - 1 - model.temporal_levels))
                frames = config.data.clip_frames // 2**halved
                yield Site(place, width, (frames, height, height))


def check_attention(config: Config) -> None:
    """Raises `UserError` for the first option that does not fit."""
    attention = config.model.attention
    if attention.kind == "none" and not attention.mlp_width:
        return
    _check_places(config)
    if attention.kind == "none":
        return
    _check_heads(config)
    for site in attention_sites(config):
        if attention.kind == "factorised" and (site.grid[0] == 1 or site.grid[1] == 1):
            raise UserError(
                f"model.attention.kind=factorised has nothing to mix on {site}: it needs two "
                "frames and two places at least; take model.attention.kind=self, or other "
                "model.attention.resolutions"
            )
        if attention.kind == "window":
            _check_window(attention, site)
        if attention.kind == "sparse":
            _check_sparse(attention, site)


def _check_places(config: Config) -> None:
    attention = config.model.attention
    placed = attention.placement
    if not placed or len(set(placed)) < len(placed):
        raise UserError(
            f"model.attention.placement={list(placed)} must name one or more of encoder, decoder "
            "and discriminator, each once; without any attention, set model.attention.kind=none"
        )
    of_generator, of_discriminator = level_resolutions(config)
    known = set(of_generator if set(placed) & {"encoder", "decoder"} else [])
    known |= set(of_discriminator if "discriminator" in placed else [])
    for resolution in attention.resolutions:
        if resolution not in known:
            raise UserError(
                f"model.attention.resolutions={list(attention.resolutions)}: no level has height "
                f"{resolution}; the levels have {sorted(known, reverse=True)}"
            )


def _check_heads(config: Config) -> None:
    attention = config.model.attention
    if attention.head_dim % 2:
        raise UserError(
            f"model.attention.head_dim={attention.head_dim} must be even: rotary positions turn "
            f"pairs of channels; take {attention.head_dim - 1} or {attention.head_dim + 1}"
        )
    if attention.head_dim:
        return
    for site in attention_sites(config):
        if site.width % (2 * attention.heads):
            fitting = [n for n in range(1, site.width // 2 + 1) if site.width % (2 * n) == 0]
            raise UserError(
                f"model.attention.heads={attention.heads} does not divide the {site.width} "
                f"channels of the {site.place} at height {site.grid[1]} into heads of even width; "
                f"{_nearest(attention.heads, fitting)}set model.attention.head_dim"
            )


def _nearest(asked: int, fitting: list[int]) -> str:
    """The nearest fitting numbers, below and above."""
    below = [n for n in fitting if n < asked][-1:]
    above = [n for n in fitting if n > asked][:1]
    near = " or ".join(map(str, below + above))
    return f"take {near}, or " if near else ""


def _check_window(attention: AttentionConfig, site: Site) -> None:
    window = attention.window
    if any(size < 0 for size in window):
        raise UserError(
            f"model.attention.window={list(window)} must hold sizes from 1 on, or 0 for a whole "
            "axis"
        )
    if any(size > length for size, length in zip(window, site.grid, strict=True)):
        fitting = [min(size, length) for size, length in zip(window, site.grid, strict=True)]
        raise UserError(
            f"model.attention.window={list(window)} is larger than {site}; the largest that fits "
            f"is {fitting} (0 stands for a whole axis)"
        )
    if math.prod(window_on(site.grid, window)) == 1:
        raise UserError(
            f"model.attention.window={list(window)} shows a token only itself; take {[0, 1, 1]} or "
            f"{[1, 3, 3]}, or model.attention.kind=additive"
        )


def _check_sparse(attention: AttentionConfig, site: Site) -> None:
    block, reach, density = attention.block, attention.reach, attention.density
    if any(size < 1 for size in block):
        raise UserError(f"model.attention.block={list(block)} must hold sizes from 1 on")
    if any(size > length for size, length in zip(block, site.grid, strict=True)):
        fitting = [min(size, length) for size, length in zip(block, site.grid, strict=True)]
        raise UserError(
            f"model.attention.block={list(block)} is larger than {site}; the largest that fits is "
            f"{fitting}"
        )
    if any(step < 0 for step in reach):
        raise UserError(f"model.attention.reach={list(reach)} must hold numbers from 0 on")
    blocks = block_grid(site.grid, block)
    near, total = math.prod(near_per_axis(blocks, reach)), math.prod(blocks)
    if density == 0 or num_seen(site.grid, block, density) < near:
        least = math.ceil(least_density(site.grid, block, reach) * 1000) / 1000
        raise UserError(
            f"model.attention.density={density:g} lets a block see "
            f"{num_seen(site.grid, block, density) if density else 0} of the {total} blocks of "
            f"{site}, fewer than the {near} in model.attention.reach={list(reach)}; take a density "
            f"from {least:g} to 1, or a smaller reach or block"
        )
    if num_seen(site.grid, block, density) * math.prod(block) == 1:
        raise UserError(
            f"model.attention.density={density:g} shows a token of {site} only itself; take a "
            f"density from {math.ceil(2000 / total) / 1000:g} to 1, or a larger block"
        )
