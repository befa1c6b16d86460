"""Whether the attention's options fit the networks; messages name the nearest values that do.

A value fits if it does at every level that gets attention, so all of them are asked at once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distgan.config import AttentionConfig, Config
from distgan.errors import UserError
from distgan.sparsity import Grid, block_grid, near_per_axis, num_seen, three, window_on


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


def built_places(config: Config) -> list[str]:
    """The places asked for that there are: no encoder where no task gives a video."""
    without = {"encoder"} if config.conditioning.task == "none" else set()
    return [place for place in config.model.attention.placement if place not in without]


def attention_sites(config: Config) -> Iterator[Site]:
    """Where layers stand: in the encoder (if a task builds one), the decoder, the discriminator."""
    model = config.model
    of_generator, of_discriminator = level_resolutions(config)
    for place in built_places(config):
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
    _check_placement(config)
    _check_resolutions(config)
    sites = list(attention_sites(config))
    assert sites, "each resolution was found in a place that is built"
    if attention.kind == "none":
        return
    _check_heads(attention, sites)
    if attention.kind == "factorised":
        _check_factorised(sites)
    if attention.kind == "window":
        _check_window(attention.window, sites)
    if attention.kind == "sparse":
        _check_sparse(attention, sites)


def _check_placement(config: Config) -> None:
    placed = config.model.attention.placement
    if not placed or len(set(placed)) < len(placed):
        raise UserError(
            f"model.attention.placement={list(placed)} must name one or more of encoder, decoder "
            f"and discriminator, each once; {_without_any(config)}"
        )
    if not built_places(config):
        raise UserError(
            f"model.attention.placement={list(placed)}: no level has attention, for with "
            "conditioning.task=none there is no encoder; add decoder or discriminator; "
            f"{_without_any(config)}"
        )


def _check_resolutions(config: Config) -> None:
    asked = config.model.attention.resolutions
    said = f"model.attention.resolutions={list(asked)}"
    of_generator, of_discriminator = level_resolutions(config)
    built = set(built_places(config))
    known = set(of_generator if built & {"encoder", "decoder"} else [])
    known |= set(of_discriminator if "discriminator" in built else [])
    levels = f"the levels have {sorted(known, reverse=True)}"
    if not asked:
        raise UserError(f"{said}: no level has attention; {levels}; {_without_any(config)}")
    if len(set(asked)) < len(asked):
        raise UserError(f"{said} names a height twice; take {list(dict.fromkeys(asked))}")
    for resolution in asked:
        if resolution not in known:
            raise UserError(f"{said}: no level has height {resolution}; {levels}")


def _without_any(config: Config) -> str:
    mlp = " and model.attention.mlp_width=0" if config.model.attention.mlp_width else ""
    return f"without any attention, set model.attention.kind=none{mlp}"


def _check_heads(attention: AttentionConfig, sites: Sequence[Site]) -> None:
    head_dim, turned = attention.head_dim, _turns_pairs(attention)
    if head_dim:
        width = head_dim * attention.heads if attention.kind == "dense" else head_dim
        if turned and width % 2:
            near = " or ".join(str(n) for n in (head_dim - 1, head_dim + 1) if n)
            raise UserError(
                f"model.attention.head_dim={head_dim} must be even: rotary positions turn pairs of "
                f"channels; take {near}, or model.attention.positions=none"
            )
        return
    for site in sites:
        if not _divides(attention, attention.heads, site):
            most = min(site.width for site in sites)
            fitting = [
                n for n in range(1, most + 1) if all(_divides(attention, n, s) for s in sites)
            ]
            raise UserError(
                f"model.attention.heads={attention.heads} does not divide the {site.width} "
                f"channels of the {site.place} at height {site.grid[1]} into heads of "
                f"{'even' if turned else 'equal'} width; {_nearest(attention.heads, fitting)}set "
                "model.attention.head_dim"
            )


def _turns_pairs(attention: AttentionConfig) -> bool:
    """Whether there are rotary positions, which need heads of even width."""
    return attention.kind != "additive" and attention.positions == "rotary"


def _divides(attention: AttentionConfig, heads: int, site: Site) -> bool:
    """Whether so many heads share a level's channels evenly (dense: in one head, in the end)."""
    width = site.width if attention.kind == "dense" else site.width // heads
    return site.width % heads == 0 and not (_turns_pairs(attention) and width % 2)


def _nearest(asked: int, fitting: list[int]) -> str:
    """The nearest fitting numbers, below and above."""
    below = [n for n in fitting if n < asked][-1:]
    above = [n for n in fitting if n > asked][:1]
    near = " or ".join(map(str, below + above))
    return f"take {near}, or " if near else ""


def _check_factorised(sites: Sequence[Site]) -> None:
    for site in sites:
        if site.grid[0] == 1 or site.grid[1] == 1:
            raise UserError(
                f"model.attention.kind=factorised has nothing to mix on {site}: it needs two "
                "frames and two places at least; take model.attention.kind=self, or other "
                "model.attention.resolutions"
            )


def _check_window(window: Grid, sites: Sequence[Site]) -> None:
    _check_two_tokens("window", sites)
    if _window_fits(window, sites):
        return
    clamped = _clamp(window, _shortest(sites))
    nearest = three(0 if size == 0 else n for size, n in zip(window, clamped, strict=True))
    fitting = [
        list(other)
        for other in (nearest, (0, 1, 1), (1, 3, 3), (0, 0, 0))
        if _window_fits(other, sites)
    ]
    larger = _smaller_than(window, sites)
    if any(size < 0 for size in window):
        what = "must hold sizes from 1 on, or 0 for a whole axis"
    else:
        what = f"is larger than {larger}" if larger else "shows a token only itself"
    named = fitting[:1] if list(nearest) in fitting else fitting[:2]
    raise UserError(
        f"model.attention.window={list(window)} {what}; take {' or '.join(map(str, named))} "
        "(0 stands for a whole axis)"
    )


def _window_fits(window: Grid, sites: Sequence[Site]) -> bool:
    return all(
        all(0 <= size <= length for size, length in zip(window, site.grid, strict=True))
        and math.prod(window_on(site.grid, window)) > 1
        for site in sites
    )


def _check_sparse(attention: AttentionConfig, sites: Sequence[Site]) -> None:
    _check_two_tokens("sparse", sites)
    block, reach = attention.block, three(max(0, step) for step in attention.reach)
    clamped = _clamp(block, _shortest(sites))
    fits = all(_sees_enough(site, clamped, reach, attention.density) for site in sites)
    besides = "" if fits else f" with a {_densities(clamped, reach, sites)}"
    if block != clamped:
        larger = _smaller_than(block, sites)
        what = f"is larger than {larger}" if larger else "must hold sizes from 1 on"
        raise UserError(
            f"model.attention.block={list(block)} {what}; take {list(clamped)}{besides}"
        )
    if attention.reach != reach:
        raise UserError(
            f"model.attention.reach={list(attention.reach)} must hold numbers from 0 on; take "
            f"{list(reach)}{besides}"
        )
    for site in sites:
        if not _sees_enough(site, block, reach, attention.density):
            _refuse_density(attention, site, sites)


def _refuse_density(attention: AttentionConfig, site: Site, sites: Sequence[Site]) -> None:
    block, reach, density = attention.block, attention.reach, attention.density
    blocks = block_grid(site.grid, block)
    near, total = math.prod(near_per_axis(blocks, reach)), math.prod(blocks)
    seen = num_seen(site.grid, block, density) if density else 0
    what, instead = f"shows a token of {site} only itself", ""
    if seen < near:
        what = (
            f"lets a block see {seen} of the {total} blocks of {site}, fewer than the {near} in "
            f"model.attention.reach={list(reach)}"
        )
        most = min(max(reach), total)
        shorter = (three(min(step, cap) for step in reach) for cap in range(most, -1, -1))
        fitting = (r for r in shorter if all(_sees_enough(s, block, r, density) for s in sites))
        found = next(fitting, None)
        instead = f", or model.attention.reach={list(found)}" if found else ""
    raise UserError(
        f"model.attention.density={density:g} {what}; take a {_densities(block, reach, sites)}"
        f"{instead}"
    )


def _sees_enough(site: Site, block: Grid, reach: Grid, density: float) -> bool:
    """Whether a block sees those in reach, and a token more than itself."""
    seen = num_seen(site.grid, block, density) if density else 0
    near = math.prod(near_per_axis(block_grid(site.grid, block), reach))
    return seen >= near and seen * math.prod(block) > 1


def _densities(block: Grid, reach: Grid, sites: Sequence[Site]) -> str:
    """Those that see enough at all levels, in thousandths."""
    least = next(
        thousandth
        for thousandth in range(1, 1001)
        if all(_sees_enough(site, block, reach, thousandth / 1000) for site in sites)
    )
    return f"density from {least / 1000:g} to 1" if least < 1000 else "density of 1"


def _check_two_tokens(kind: str, sites: Sequence[Site]) -> None:
    for site in sites:
        if math.prod(site.grid) == 1:
            raise UserError(
                f"model.attention.kind={kind} has nothing to mix on {site}, which is one token; "
                "take model.attention.kind=additive, or other model.attention.resolutions"
            )


def _clamp(sizes: Grid, lengths: Grid) -> Grid:
    """Each size moved to 1 ... its length."""
    return three(min(max(size, 1), n) for size, n in zip(sizes, lengths, strict=True))


def _shortest(sites: Sequence[Site]) -> Grid:
    """The least length of each axis."""
    return three(min(lengths) for lengths in zip(*(site.grid for site in sites), strict=True))


def _smaller_than(sizes: Grid, sites: Sequence[Site]) -> Site | None:
    """The first level that some size is too large for."""
    for site in sites:
        if any(size > length for size, length in zip(sizes, site.grid, strict=True)):
            return site
    return None
