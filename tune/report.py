"""What a sweep comes to, in plain words: the winner, how sure it is, what mattered, what failed."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from distgan import storage
from tune.importance import LEAST_TRIALS, Importance
from tune.ranking import Candidate, base_of, judge, pareto_front, score, winner
from tune.records import BASE, MetricSpec, SweepSpec
from tune.tables import MARKDOWN, counts, number

NAME = "report.md"

_NO_REPEATS = (
    "No configuration was tried with another seed, so how much of the order is luck can't be told: "
    "--repeats tries each with several."
)
_WEIGHT = {True: ", so that hardly explains it", False: ", so it may be just that"}
_SELECTED = (
    "The best of many trials was lucky, too: trained anew with another seed it is likely to come "
    "out somewhat worse."
)
_OF_THE_MACHINE = ("time/", "throughput/", "memory/")
_SHARED = (
    "Times and throughput are those of the last steps alone, and of a machine that trials may have "
    "shared: `--max-concurrent 1` gives each the whole of it."
)
_STOPPED = (
    "Trials that were stopped early stand behind those that finished, the later stopped first: "
    "what they would have become is not known."
)
_PBT = (
    "Under pbt configurations change while they train, and states are copied: the overrides are "
    "those of the winner's last stretch, and training with them from the start is another run. "
    "What the sweep made is the winner's generator (--export)."
)
_ADAPTIVE = (
    "The search itself chose where to look, which makes the shares less sure than those of a "
    "random search."
)


def text(
    folder: str,
    spec: SweepSpec,
    candidates: Sequence[Candidate],
    found: Sequence[Importance],
    overrides: str,
    pictures: Sequence[str],
) -> str:
    """The whole report.md.

    Args:
        found: the hyperparameters' importance.
        overrides: the winner's, as typed in a shell.
        pictures: the plots' names within the folder.
    """
    parts = [
        "# Result of a sweep",
        "\n".join(_what(folder, spec, candidates)),
        "## The winner",
        "\n".join(_winner(folder, spec, candidates, overrides)),
        "## How sure that is",
        "\n".join(f"- {line}" for line in certainty(spec, candidates)),
        *(_front(spec, candidates) if len(spec.metrics) > 1 else ()),
        "## What mattered",
        "\n".join(_importance(spec, found)),
        "## What became of the trials",
        "\n".join(_fates(candidates)),
        *(f"![{name}]({name})" for name in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def summary(folder: str, spec: SweepSpec, candidates: Sequence[Candidate], overrides: str) -> str:
    """The result in a few lines, for a terminal."""
    lines = [" ".join(_what(folder, spec, candidates))]
    best = winner(candidates)
    if best is not None:
        lines.append(_value_line(spec.metrics[0], best))
        lines += certainty(spec, candidates)
        shown = "none: it is the base configuration" if best.group == BASE else overrides
        lines.append(f"overrides: {shown}")
        lines.append(_train_command(folder))
    return "\n".join([*lines, f"all of it: {storage.join(folder, NAME)}"])


def certainty(spec: SweepSpec, candidates: Sequence[Candidate]) -> list[str]:
    """Plain sentences on how far the order can be trusted."""
    best = winner(candidates)
    if best is None:
        return ["No trial has a value of the objective yet, so nothing is ranked."]
    lines = [*_against_base(spec, candidates, best), *_luck(spec, candidates, best), _SELECTED]
    if spec.algorithm == "pbt":
        lines.append(_PBT)
    if any(trial.status == "stopped" for c in candidates for trial in c.trials):
        lines.append(_STOPPED)
    return lines


def _luck(spec: SweepSpec, candidates: Sequence[Candidate], best: Candidate) -> Iterator[str]:
    verdict = judge(spec, candidates)
    if best.state == "unfinished":
        yield "No configuration has come to its end on all its seeds: the order may change."
    elif verdict is None and sum(c.state == "finished" for c in candidates) < 2:
        yield "Only one configuration has finished: there is nothing to hold it against."
    elif verdict is None:
        yield _NO_REPEATS
    else:
        yield (
            f"Over seeds, {spec.metrics[0].name} of one configuration scatters with a standard "
            f"deviation of {verdict.spread:.3g}. Redrawn with that luck, the winner stays first in "
            f"{_percent(verdict.first_again)} of all cases."
        )
        if verdict.rivals:
            yield f"Luck may hide that these are better: {', '.join(verdict.rivals)}."
        else:
            yield "No other configuration comes within reach of luck."


def _percent(chance: float) -> str:
    """Whole percents; a model's 100 % is no certainty."""
    if chance > 0.99:
        return "more than 99 %"
    return "less than 1 %" if chance < 0.01 else f"{chance:.0%}".replace("%", " %")


def _what(folder: str, spec: SweepSpec, candidates: Sequence[Candidate]) -> Iterator[str]:
    yield f"{folder}: {counts(candidates)}."
    better = ", ".join(
        f"{metric.name} ({'lower' if metric.mode == 'min' else 'higher'} is better)"
        for metric in spec.metrics
    )
    seeds = "1 seed" if spec.repeats == 1 else f"{spec.repeats} seeds"
    yield (
        f"Algorithm {spec.algorithm}, {spec.max_steps} steps a trial, {seeds} a configuration; "
        f"objective: {better}."
    )
    if any(trial.status == "running" for c in candidates for trial in c.trials):
        yield "Trials still run, or were cut short: this is what is known so far."


def _winner(
    folder: str, spec: SweepSpec, candidates: Sequence[Candidate], overrides: str
) -> Iterator[str]:
    best = winner(candidates)
    if best is None:
        yield "There is none yet."
        return
    yield _value_line(spec.metrics[0], best)
    yield "\n```"
    is_base = best.group == BASE
    yield "# no overrides: it is the base configuration itself" if is_base else overrides
    yield "```\n"
    yield f"As a whole configuration it is `best.yaml`: `{_train_command(folder)}`."
    if len(best.values) > 1:
        yield "Its seed is the one that came out best, so it makes that very trial again."
    if any(m.name.startswith(_OF_THE_MACHINE) for m in spec.metrics):
        yield _SHARED
    if len(spec.metrics) > 1:
        yield f"It is the best in {spec.metrics[0].name} alone; for others, see the Pareto front."


def _value_line(metric: MetricSpec, candidate: Candidate) -> str:
    mean, seeds = candidate.means[metric.name], len(candidate.values)
    who = "the base configuration" if candidate.group == BASE else candidate.group
    line = f"Winner: {who}, with {metric.name} {mean:.4g}"
    if seeds > 1:
        values = ", ".join(f"{value:.4g}" for value in candidate.values)
        line += f" on average over {seeds} seeds ({values})"
    at = f" at step {candidate.step}" if candidate.state == "unfinished" else ""
    return f"{line}{at}."


def _train_command(folder: str) -> str:
    return f"python launch.py train --config {shlex.quote(storage.join(folder, 'best.yaml'))}"


def _against_base(
    spec: SweepSpec, candidates: Sequence[Candidate], best: Candidate
) -> Iterator[str]:
    metric, base = spec.metrics[0], base_of(candidates)
    if base is None:
        yield "The base configuration was not among the trials: whether this beats it is not known."
    elif best is base:
        yield "Nothing beat the base configuration."
    elif base.state == "diverged":
        yield "The base configuration diverged; the winner did not."
    elif base.state != "finished":
        yield "The base configuration has not finished: whether the winner beats it is not known."
    elif best.state == "finished":
        mine, its = score(metric, best.means), score(metric, base.means)
        change = f" ({abs(its - mine) / abs(its) * 100:.1f} % better)" if its else ""
        yield (f"The winner beats the base configuration: {best.means[metric.name]:.4g} against "
               f"{base.means[metric.name]:.4g}{change}.")  # fmt: skip
        verdict = judge(spec, candidates)
        if verdict is not None and verdict.by_chance is not None:
            yield (f"Were all configurations alike, luck alone would put the best of them so far "
                   f"ahead of it in {_percent(verdict.by_chance)} of such sweeps"
                   f"{_WEIGHT[verdict.by_chance < 0.05]}.")  # fmt: skip


def _front(spec: SweepSpec, candidates: Sequence[Candidate]) -> list[str]:
    names = [metric.name for metric in spec.metrics]
    lines = [
        f"| configuration | {' | '.join(names)} | overrides |",
        "|---" * (len(names) + 2) + "|",
    ]
    for candidate in pareto_front(spec, candidates):
        values = " | ".join(number(candidate.means.get(name)) for name in names)
        overrides = " ".join(f"{key}={number(value)}" for key, value in candidate.overrides.items())
        lines.append(f"| {candidate.group} | {values} | {overrides} |")
    return ["## Pareto front", "Beaten by none in all metrics at once:", "\n".join(lines)]


def _importance(spec: SweepSpec, found: Sequence[Importance]) -> Iterator[str]:
    if not found:
        yield f"Too little to tell: that takes {LEAST_TRIALS} configurations with unlike results."
        return
    outstanding = ", ".join(f"`{each.key}`" for each in found if each.stands_out)
    if outstanding:
        yield f"More than chance explains, the order of the trials follows {outstanding}."
    else:
        yield "No hyperparameter stands out from chance: more trials may tell."
    yield (
        "Each share is what a hyperparameter explains of the order alone, with its 90 % interval; "
        f"chance rarely (1 in 20) gives any of them more than {found[0].chance:.2f}. How they act "
        "together is not in these numbers."
    )
    if "tpe" in spec.algorithm or spec.algorithm == "pbt":
        yield _ADAPTIVE
    yield "\n| hyperparameter | share | interval | stands out | best values | worst values |"
    yield "|---|---|---|---|---|---|"
    for each in found:
        interval, sure = f"{each.low:.2f} to {each.high:.2f}", "yes" if each.stands_out else "no"
        total = sum(level.trials for level in each.levels)
        best, worst = (
            f"{level.name} (mean place {level.mean_rank:.1f} of {total})"
            for level in (each.levels[0], each.levels[-1])
        )
        yield f"| {each.key} | {each.share:.2f} | {interval} | {sure} | {best} | {worst} |"


def _fates(candidates: Sequence[Candidate]) -> Iterator[str]:
    yield f"{counts(candidates)}; each of them is in [{MARKDOWN}]({MARKDOWN}) and trials.csv.\n"
    for status in ("stopped", "pruned", "diverged", "failed"):
        trials = [t for c in candidates for t in c.trials if t.status == status]
        for reason, count in Counter(
            " ".join(trial.reason.split()) for trial in trials
        ).most_common():
            which = ", ".join(t.trial_id for t in trials if " ".join(t.reason.split()) == reason)
            yield f"- {count} {status}: {reason or 'no reason given'} ({which})"
