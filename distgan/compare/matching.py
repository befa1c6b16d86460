"""Kinds of attention with equally many parameters, so that none wins by being larger.

The knob is `model.attention.mlp_width`, the hidden width of the layer after each attention layer;
`none` has that layer too. The target of each network is the largest kind's number at the configured
width. There is one width for both networks, so each kind gets the one at which the network that
fits worse comes nearest to its target.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import get_args

from distgan.attention_checks import attention_sites, level_resolutions
from distgan.config import AttentionConfig, Config
from distgan.config_loading import with_values
from distgan.config_section import Section
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
        """Of both networks together."""
        return self.generator_parameters + self.discriminator_parameters

    @property
    def of_networks(self) -> tuple[int, int]:
        """Of generator and discriminator: these are what is matched, each by itself."""
        return self.generator_parameters, self.discriminator_parameters


def known_kinds() -> tuple[str, ...]:
    return get_args(AttentionConfig.model_fields["kind"].annotation)


def match(config: Config, kinds: Sequence[str], tolerance: float) -> tuple[MatchedKind, ...]:
    """Each kind with a width that makes all networks equally large, within `tolerance`.

    Raises:
        UserError: fewer than two kinds, an unknown or doubled one, one whose options do not fit the
            shapes, or kinds that can't be matched: then the nearest numbers of parameters are said.
    """
    _check_kinds(config, kinds)
    sizes: dict[str, Callable[[int], MatchedKind]] = {kind: _sizes(config, kind) for kind in kinds}
    least = config.model.attention.mlp_width
    target = _largest([size(least) for size in sizes.values()])
    matched = tuple(_nearest(size, least, target) for size in sizes.values())
    _check_matched(matched, sizes, least, target, tolerance)
    return matched


def differences(matched: Sequence[MatchedKind]) -> tuple[float, float]:
    """Of the generators and of the discriminators: the largest one's relative excess."""
    generators, discriminators = zip(*(kind.of_networks for kind in matched), strict=True)
    return max(generators) / min(generators) - 1, max(discriminators) / min(discriminators) - 1


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


def _largest(kinds: Sequence[MatchedKind]) -> tuple[int, int]:
    generators, discriminators = zip(*(kind.of_networks for kind in kinds), strict=True)
    return max(generators), max(discriminators)


def _nearest(
    size: Callable[[int], MatchedKind], least: int, target: tuple[int, int]
) -> MatchedKind:
    """At the width where the worse of both networks is nearest to its target."""
    widths = [width for place in (0, 1) for width in _bracket(size, least, target, place)]
    # Between the widths that suit either network: the counts there lie on lines.
    first, second = size(least + 1), size(least + 2)

    def miss(width: int) -> float:
        counts: Sequence[int] = size(least).of_networks
        if width > least:
            counts = tuple(
                one + (width - first.mlp_width) * (two - one)
                for one, two in zip(first.of_networks, second.of_networks, strict=True)
            )
        return max(abs(math.log(n / wanted)) for n, wanted in zip(counts, target, strict=True))

    return size(min(range(min(widths), max(widths) + 1), key=miss))


def _bracket(
    size: Callable[[int], MatchedKind], least: int, target: tuple[int, int], place: int
) -> tuple[int, int]:
    """Widths just below and just above one network's target; equal where the least reaches it."""
    # From the first width that builds the MLP on, each further one adds equally many parameters.
    first, second = size(least + 1), size(least + 2)
    each = second.of_networks[place] - first.of_networks[place]
    if size(least).of_networks[place] >= target[place] or not each:
        return least, least
    missing = target[place] - first.of_networks[place]
    above = first.mlp_width + max(0, math.ceil(missing / each))
    return above - 1, above


def _check_matched(
    matched: Sequence[MatchedKind],
    sizes: dict[str, Callable[[int], MatchedKind]],
    least: int,
    target: tuple[int, int],
    tolerance: float,
) -> None:
    found = differences(matched)
    if max(found) <= tolerance:
        return
    place = found.index(max(found))
    network = ("generator", "discriminator")[place]
    farthest = max(matched, key=lambda kind: abs(kind.of_networks[place] - target[place]))
    size = sizes[farthest.kind]
    near = {farthest.mlp_width, *(_bracket(size, least, target, place)[1] for place in (0, 1))}
    reachable = ", ".join(
        "{:,} + {:,}".format(*size(width).of_networks) + f" ({KNOB}={width})"
        for width in sorted(near)
    )
    enough = math.ceil(max(found) * 1e5) / 1e5
    raise UserError(
        f"--kinds: the {network} of {farthest.kind} can't be brought within {tolerance:g} of "
        f"{target[place]:,} parameters, which the largest kind's has, with one {KNOB} for both "
        f"networks; the nearest that it can have are {reachable} (generator + discriminator; "
        f"{target[0]:,} + {target[1]:,} are wanted): compare with "
        f"--tolerance {enough:g}, or choose other model.attention.heads or "
        "model.attention.head_dim (a fixed one suits both networks, 0 ties it to the channels), "
        "or equal channels in both networks"
    )
