"""The report in words: what the data supports, what it does not, and how it was found."""

import math
from collections.abc import Sequence

from distgan.compare.matching import differences
from distgan.compare.results import KindResult, Results
from distgan.compare.statistics import (
    CONFIDENCE,
    NUM_READINGS,
    Pair,
    Spread,
    smallest_visible_ratio,
)

NOTHING = "-"
"""In tables, where there is no number."""

MEANINGS = {
    "none": "no attention",
    "additive": "a learned weight per element, no mixing between elements",
    "dense": "one head, every token looks at every other",
    "self": "several heads, every token looks at every other",
    "factorised": "several heads, first within a frame, then along time",
    "window": "each token looks at its neighbourhood in space and time",
    "sparse": "near blocks of tokens and some far ones",
}


def statement(results: Results) -> str:
    """What the data supports, at both readings, in plain words."""
    plan = results.plan
    clips = f"{plan.steps:,} steps of {plan.config.train.batch_size} clips"
    lines = [
        f"- **After equally many training steps** ({clips}): "
        + verdict(results.pairs_at_steps, len(plan.seeds))
    ]
    if results.common_time_s > 0:
        lines.append(
            f"- **After equal computing time** ({format_seconds(results.common_time_s)} each): "
            + verdict(results.pairs_at_time, len(plan.seeds))
        )
    for kind in results.kinds:
        if kind.diverged:
            where = ", ".join(f"seed {seed} at step {step}" for seed, step in kind.diverged.items())
            lines.append(
                f"- **{kind.name} diverged** in {len(kind.diverged)} of {len(plan.seeds)} runs "
                f"({where}). In the table such a run counts as one that never trained; no "
                "conclusion rests on it."
            )
    return "\n".join(lines)


def verdict(pairs: Sequence[Pair], num_seeds: int) -> str:
    """Which kinds are better than which, or that nothing can be said."""
    wins: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.better is not None:
            loser = pair.second if pair.better == pair.first else pair.first
            wins.setdefault(pair.better, []).append(loser)
    if not wins:
        return f"**no conclusion**; {_why_open(pairs, num_seeds)}."
    said = "; ".join(f"**{best} is better than {_and(worse)}**" for best, worse in wins.items())
    open_pairs = sum(pair.better is None for pair in pairs)
    if not open_pairs:
        return f"{said}."
    left = "the other pair" if open_pairs == 1 else f"the other {open_pairs} pairs"
    return f"{said}. **No conclusion** on {left} of {len(pairs)}."


def _why_open(pairs: Sequence[Pair], num_seeds: int) -> str:
    if num_seeds < 2:
        return "with one seed nobody knows how much luck is in the figures"
    if all(pair.num_seeds < 2 for pair in pairs):
        return "too few runs trained to the end: no pair of kinds has two seeds of which both did"
    if any(pair.num_seeds < num_seeds for pair in pairs):
        return (
            f"with {num_seeds} seeds, less those where a run diverged, the differences may as well "
            "be luck, or the kind that came closer diverged where the other did not"
        )
    return f"with {num_seeds} seeds, the differences may as well be luck"


def limits(results: Results) -> str:
    """What the data does not support."""
    plan = results.plan
    seen = smallest_visible_ratio(results.pairs_at_steps)
    seeds = f"- **{len(plan.seeds)} seeds a kind.** "
    if len(plan.seeds) == 1:
        seeds = "- **One seed a kind.** Nothing can be said without a second one. "
    elif math.isfinite(seen):
        seeds += (
            f"Two kinds had to differ by a factor of {_factor(seen)} in distance (in the median "
            "pair, after equal steps) to be told apart; that no difference was found does not mean "
            "that there is none. "
        )
    place = (
        f"- **One data set, one size.** {plan.config.data.clip_frames} frames of "
        f"{plan.config.data.resolution} pixels; attention works on {results.num_tokens:,} tokens "
        "of a clip at most. Kinds made for many tokens cannot show their worth on few."
    )
    best = min(kind.at_steps.mean for kind in results.kinds)
    training = (
        f"- **{plan.steps:,} steps.** The smallest mean distance, {format_number(best)}, is "
        f"{_factor(best / results.floor)} times that of real clips and "
        f"{format_number(best / results.untrained.mean)} times that of untrained generators. Which "
        "kind is ahead can change with longer training, and with other learning rates; all kinds "
        "had the same."
    )
    quality = (
        "- **A proxy.** The distance is taken on features of a fixed random network: it orders "
        "runs on one data set, and is no published FVD. The real clips that it compares with are "
        "training clips, so it would not notice learning by heart."
    )
    schedule = (
        "- **At equal time** a kind with slower steps is read before its last steps, when its "
        "learning rate has not come down all the way. That counts against slow kinds; set "
        "`optim.generator.schedule=constant optim.discriminator.schedule=constant` to leave it out."
    )
    return "\n".join([seeds.rstrip(), place, training, quality, schedule])


def method(results: Results) -> str:
    """How the runs were made equal and judged."""
    plan = results.plan
    apart = [f"{100 * share:.1f}%" for share in differences([kind.kind for kind in results.kinds])]
    devices = " and ".join(results.devices)
    threads = " or ".join(str(count) for count in results.threads)
    clock = "seconds of CPU time, all threads together" if "cpu" in results.devices else "GPU time"
    count = len(results.pairs_at_steps)
    pairs = "the one pair" if count == 1 else f"all {count} pairs"
    return f"""- **Equal but for attention.** All runs have one configuration (`compare.json`): \
the same data in the same order, the same noise, the same start weights wherever the networks are \
the same, the same schedules and budget. Only `model.attention.kind` and \
`model.attention.mlp_width` differ. The latter is the width of a small network behind each \
attention layer, which `none` has too: with it the kinds' numbers of parameters are \
within {apart[0]} of each other in the generators, within {apart[1]} in the discriminators.
- **Seeds:** {_and([str(seed) for seed in plan.seeds])}. A seed decides start weights, data order \
and noise; kinds are compared seed by seed.
- **Distance** (proxy Fréchet distance, lower is better) between {plan.config.log.proxy_clips} \
clips of the averaged generator, always of the same noise, and as many real clips, always the \
same. Real clips against other real ones have {format_number(results.floor)}: nobody should \
expect less. Untrained generators have {format_spread(results.untrained)}. Measured \
{plan.evaluations} times in each run.
- **Computing time** is that of the training steps alone ({clock}; device: {devices}, \
{threads} threads), without measuring, saving and waiting for data. The equal-time reading is \
taken at the largest time that all runs reached, on straight lines between the measurements.
- **"Better"** is said if the {100 * CONFIDENCE:.0f}% confidence interval of the ratio of the two \
kinds' distances excludes 1. The interval is Student's t on the logarithms, paired by seed, and \
holds for {pairs} at both readings together ({NUM_READINGS * count} comparisons, Bonferroni), so \
that many looks do not find a winner by chance. It rests \
on the seeds at which both kinds trained to the end, two at least, whose ratios must differ. A \
kind is never called better that diverged where the other did not. In the table a run that \
diverged counts with its untrained generator's distance.
- **Memory** is what a training step takes in a fresh process beyond what it had before the \
networks were built (on a GPU: what tensors take). **FLOPs** are counted from the shapes, for one \
clip forward through both networks."""


def table(results: Results) -> str:
    """The main table in Markdown, the best distance in bold only where it is supported."""
    seconds = format_seconds(results.common_time_s) if results.common_time_s else "equal time"
    header = ["attention", f"distance after {results.plan.steps:,} steps",
              f"distance after {seconds}", "parameters (G + D)", "FLOPs a clip", "time a step",
              "peak memory of a step"]  # fmt: skip
    with_valid = results.plan.demo_data
    if with_valid:
        header.insert(3, "valid clips")
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for kind in results.kinds:
        at_time = _distance(kind, kind.at_time) if results.common_time_s else NOTHING
        cells = [kind.name, _distance(kind, kind.at_steps), at_time,
                 _parameters(kind), format_flops(kind.forward_flops),
                 format_step(kind.step_s), format_gib(kind.step_memory_gib)]  # fmt: skip
        if kind.valid_share is not None:
            cells.insert(3, _share(kind.valid_share))
        lines.append("| " + " | ".join(cells) + " |")
    floor = ["*real clips*", format_number(results.floor), format_number(results.floor)]
    untrained = ["*untrained*", *[format_spread(results.untrained)] * 2]
    if with_valid:
        floor.append(f"{results.real_valid_share:.2f}")
        untrained.append("")
    for cells in (floor, untrained):
        lines.append("| " + " | ".join(cells + [""] * (len(header) - len(cells))) + " |")
    return "\n".join(lines)


def pairs_table(results: Results) -> str:
    """Every pair with its interval, at both readings."""
    lines = [
        "| pair | ratio of distances, equal steps | | ratio of distances, equal time | |",
        "|---|---|---|---|---|",
    ]
    for at_steps, at_time in zip(results.pairs_at_steps, results.pairs_at_time, strict=True):
        cells = [f"{at_steps.first} / {at_steps.second}"]
        for pair in (at_steps, at_time):
            cells += [_interval(pair), f"{pair.better} better" if pair.better else "no conclusion"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def format_spread(value: Spread) -> str:
    if len(value.values) < 2:
        return format_number(value.mean)
    return f"{format_number(value.mean)} ± {format_number(value.deviation)}"


def format_seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def format_step(value: Spread | None) -> str:
    return NOTHING if value is None else f"{1000 * value.mean:.0f} ms"


def format_flops(flops: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops:.0f}"


def format_gib(gib: float) -> str:
    return f"{1024 * gib:.0f} MiB" if gib < 1 else f"{gib:.2f} GiB"


def _distance(kind: KindResult, value: Spread) -> str:
    note = f" ({len(kind.diverged)} diverged)" if kind.diverged else ""
    return format_spread(value) + note


def _factor(value: float) -> str:
    return "more than 100" if value > 100 else f"about {value:.2g}"


def _share(value: Spread) -> str:
    if len(value.values) < 2:
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} ± {value.deviation:.2f}"


def _parameters(kind: KindResult) -> str:
    of_generator, of_discriminator = (
        f"{count / 1e6:.3f}" for count in
        (kind.kind.generator_parameters, kind.kind.discriminator_parameters)
    )  # fmt: skip
    return f"{kind.kind.parameters / 1e6:.3f} M ({of_generator} + {of_discriminator})"


def _interval(pair: Pair) -> str:
    if pair.ratio is None:
        return NOTHING
    if pair.low <= 0:
        return f"{pair.ratio:.2f} (no interval)"
    return f"{pair.ratio:.2f} ({format_number(pair.low)} to {format_number(pair.high)})"


def _and(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
