"""Kinds of attention with equally many parameters, so that none wins by being larger.

The knob is `model.attention.mlp_width`, the hidden width of the layer after each attention layer;
`none` has that layer too. The kind that is largest at the configured width keeps it; the others get
the width that brings them nearest to it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import get_args

from distgan.attention_checks import attention_sites, level_resolutions
from distgan.config import AttentionConfig, Config, Section
from distgan.config_loading import with_values
from distgan.errors import UserError
from distgan.networks import count_parameters, meta_discriminator, meta_generator

KIND, KNOB = "model.attention.kind", "model.attention.mlp_width"


class MatchedKind(Section):
    """A kind with its value of the knob, and how many parameters that makes."""

    kind: str
    mlp_width: int
    generator_parameters: int
    discriminator_parameters: int

    @property
    def parameters(self) -> int:
        """Of both networks together; these are what is matched."""
        return self.generator_parameters + self.discriminator_parameters


def known_kinds() -> tuple[str, ...]:
    return get_args(AttentionConfig.model_fields["kind"].annotation)


def match(config: Config, kinds: Sequence[str], tolerance: float) -> tuple[MatchedKind, ...]:
    """Each kind with a width that makes all equally large, within `tolerance`.

    Raises:
        UserError: fewer than two kinds, an unknown or doubled one, one whose options do not fit the
            shapes, or kinds that can't be matched: then the nearest numbers of parameters are said.
    """
    _check_kinds(config, kinds)
    sizes: dict[str, Callable[[int], MatchedKind]] = {kind: _sizes(config, kind) for kind in kinds}
    least = config.model.attention.mlp_width
    target = max(size(least).parameters for size in sizes.values())
    matched = tuple(_nearest(size, least, target) for size in sizes.values())
    _check_matched(matched, sizes, least, target, tolerance)
    return matched


def _check_kinds(config: Config, kinds: Sequence[str]) -> None:
    known = known_kinds()
    for kind in kinds:
        if kind not in known:
            raise UserError(f"--kinds: {kind!r} is no kind of attention; known: {', '.join(known)}")
    if len(set(kinds)) != len(kinds):
        raise UserError(f"--kinds {','.join(kinds)}: a kind comes twice; name each once")
    if len(kinds) < 2:
        raise UserError(
            f"--kinds {','.join(kinds)}: a comparison needs at least two kinds of "
            f"{', '.join(known)}"
        )
    if not list(attention_sites(config)):
        attention, levels = config.model.attention, level_resolutions(config)
        raise UserError(
            f"model.attention.resolutions={list(attention.resolutions)} and model.attention."
            f"placement={list(attention.placement)}: no level has attention, so all kinds are the "
            f"same networks; the levels have heights {sorted({*levels[0], *levels[1]})}"
        )


def _sizes(config: Config, kind: str) -> Callable[[int], MatchedKind]:
    """Width -> the kind at that width."""

    @functools.cache
    def size(mlp_width: int) -> MatchedKind:
        try:
            own = with_values(config, {KIND: kind, KNOB: mlp_width})
        except UserError as error:
            raise UserError(f"--kinds: {kind} does not fit this configuration: {error}") from error
        return MatchedKind(
            kind=kind,
            mlp_width=mlp_width,
            generator_parameters=count_parameters(meta_generator(own)),
            discriminator_parameters=count_parameters(meta_discriminator(own)),
        )

    return size


def _bracket(
    size: Callable[[int], MatchedKind], least: int, target: int
) -> tuple[MatchedKind, MatchedKind]:
    """At the widths just below and just above the target; equal where the least one reaches it."""
    if size(least).parameters >= target:
        return size(least), size(least)
    # From the first width that builds the MLP on, each further one adds equally many parameters.
    first = least + 1
    each = size(first + 1).parameters - size(first).parameters
    above = first + max(0, math.ceil((target - size(first).parameters) / each))
    return size(above - 1), size(above)


def _nearest(size: Callable[[int], MatchedKind], least: int, target: int) -> MatchedKind:
    return min(_bracket(size, least, target), key=lambda kind: abs(kind.parameters - target))


def _check_matched(
    matched: Sequence[MatchedKind],
    sizes: dict[str, Callable[[int], MatchedKind]],
    least: int,
    target: int,
    tolerance: float,
) -> None:
    smallest = min(kind.parameters for kind in matched)
    largest = max(kind.parameters for kind in matched)
    difference = largest / smallest - 1
    if difference <= tolerance:
        return
    farthest = max(matched, key=lambda kind: abs(kind.parameters - target))
    reachable = " and ".join(
        f"{kind.parameters:,} ({KNOB}={kind.mlp_width})"
        for kind in dict.fromkeys(_bracket(sizes[farthest.kind], least, target))
    )
    enough = math.ceil(difference * 1e5) / 1e5
    raise UserError(
        f"--kinds: {farthest.kind} can't be brought within {tolerance:g} of {target:,} "
        f"parameters, which the largest kind has; the nearest that it can have are {reachable}: "
        f"compare with --tolerance {enough:g}, or choose other model.attention.heads or "
        "model.attention.head_dim"
    )
