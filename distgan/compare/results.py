"""Everything that the report says, computed from the saved runs and costs alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distgan import storage
from distgan.compare.costs import most_tokens
from distgan.compare.matching import MatchedKind
from distgan.compare.measures import COMPUTE, QUALITY, read_measured
from distgan.compare.plan import Plan
from distgan.compare.statistics import (
    Course,
    Pair,
    Spread,
    common_time,
    compare_pairs,
    of_whole_runs,
    spread,
)
from distgan.costs import network_costs
from distgan.errors import UserError
from distgan.metrics.writer import METRICS_NAME, read_metrics

Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class KindResult:
    """One row of the table."""

    kind: MatchedKind
    courses: tuple[Course, ...]
    """One a seed."""
    at_steps: Spread
    """Distance after all steps; a run that diverged counts as one that never trained."""
    at_time: Spread
    """Distance after the computing time that all runs reached which trained to the end."""
    valid_share: Spread | None
    """Of clips at the end; a run that diverged has none. None where validity has no meaning."""
    step_s: Spread | None
    """Computing time of a step: CPU seconds of all threads, or a GPU's seconds. None if all runs
    diverged before the first evaluation."""
    step_memory_gib: float
    run_memory_gib: float
    """Peak of a whole run's process, evaluation included; the largest of the seeds."""
    forward_flops: int
    """Of the generator and the discriminator together, for one clip, by `distgan.costs`."""
    activation_bytes: int
    """What both keep of one clip for the backward pass."""
    tokens: tuple[Facts, ...]
    """The token sweep's points."""

    @property
    def name(self) -> str:
        return self.kind.kind

    @property
    def diverged(self) -> dict[int, int]:
        """Seed -> step."""
        return {c.seed: c.diverged_at for c in self.courses if c.diverged_at is not None}


@dataclass(frozen=True, kw_only=True)
class Results:
    plan: Plan
    kinds: tuple[KindResult, ...]
    common_time_s: float
    pairs_at_steps: tuple[Pair, ...]
    pairs_at_time: tuple[Pair, ...]
    floor: float
    """Distance of real clips from other real ones."""
    untrained: Spread
    """Distance of all runs' generators before training."""
    real_valid_share: float | None
    num_tokens: int
    """Of a clip, at most, where attention works."""
    devices: tuple[str, ...]
    threads: tuple[int, ...]


def collect(plan: Plan, output: str) -> Results:
    """Reads all runs and costs of a finished comparison.

    Raises:
        UserError: a run's metrics are damaged or lack an evaluation.
    """
    courses: dict[str, list[Course]] = {kind.kind: [] for kind in plan.kinds}
    measured: dict[str, list[Facts]] = {kind.kind: [] for kind in plan.kinds}
    for kind, seed in plan.grid():
        folder = plan.run_config(output, kind, seed).run.dir
        measured[kind.kind].append(read_measured(folder))
        courses[kind.kind].append(_course(plan, kind.kind, seed, folder, measured[kind.kind][-1]))
    everything = [course for of_kind in courses.values() for course in of_kind]
    facts = [fact for of_kind in measured.values() for fact in of_kind]
    seconds = common_time(everything)
    kinds = tuple(
        _kind_result(plan, output, kind, courses[kind.kind], measured[kind.kind], seconds)
        for kind in plan.kinds
    )
    return Results(
        plan=plan,
        kinds=kinds,
        common_time_s=seconds,
        pairs_at_steps=tuple(
            compare_pairs({k.name: of_whole_runs(k.courses, k.at_steps.values) for k in kinds})
        ),
        pairs_at_time=tuple(
            compare_pairs({k.name: of_whole_runs(k.courses, k.at_time.values) for k in kinds})
        ),
        floor=facts[0]["proxy_frechet"]["real"],
        untrained=spread([course.untrained for course in everything]),
        real_valid_share=facts[0]["valid_share"]["real"] if plan.demo_data else None,
        num_tokens=most_tokens(plan.config),
        devices=tuple(sorted({fact["device"] for fact in facts})),
        threads=tuple(sorted({fact["threads"] for fact in facts})),
    )


def _course(plan: Plan, kind: str, seed: int, folder: str, measured: Facts) -> Course:
    path = storage.join(folder, METRICS_NAME)
    lines = [line for line in read_metrics(path) if QUALITY in line]
    diverged = measured["diverged"]
    interval = plan.steps // plan.evaluations
    expected = list(range(interval, plan.steps + 1, interval))
    found = [int(line["step"]) for line in lines]
    if (diverged is None and found != expected) or any(COMPUTE not in line for line in lines):
        raise UserError(
            f"{path}: evaluations at steps {found} instead of {expected}; remove {folder} and run "
            "the command that began it again"
        )
    return Course(
        kind=kind,
        seed=seed,
        steps=tuple(found),
        compute_s=tuple(line[COMPUTE] for line in lines),
        quality=tuple(line[QUALITY] for line in lines),
        untrained=measured["proxy_frechet"]["untrained"],
        diverged_at=None if diverged is None else diverged["step"],
    )


def _kind_result(
    plan: Plan,
    output: str,
    kind: MatchedKind,
    courses: Sequence[Course],
    measured: Sequence[Facts],
    seconds: float,
) -> KindResult:
    costs = network_costs(plan.run_config(output, kind, plan.seeds[0]))
    measured_costs = storage.join(output, "costs", kind.kind)
    memory = read_json(f"{measured_costs}.memory.json")
    valid = [0.0 if fact["diverged"] else fact["valid_share"]["generated"] for fact in measured
             if plan.demo_data]  # fmt: skip
    timed = [course.total_s / course.steps[-1] for course in courses if course.steps]
    return KindResult(
        kind=kind,
        courses=tuple(courses),
        at_steps=spread([course.at_end() for course in courses]),
        at_time=spread([course.at_time(seconds) for course in courses]),
        valid_share=spread(valid) if valid else None,
        step_s=spread(timed) if timed else None,
        step_memory_gib=memory["step_memory_gib"],
        run_memory_gib=max(fact["peak_memory_gib"] for fact in measured),
        forward_flops=costs.generator.flops + costs.discriminator.flops,
        activation_bytes=costs.generator.activation_bytes + costs.discriminator.activation_bytes,
        tokens=tuple(read_json(f"{measured_costs}.tokens.json")),
    )


def read_json(path: str) -> Any:
    return json.loads(storage.read_bytes(path))


def as_json(results: Results) -> Facts:
    """All numbers of the report; infinite bounds as null."""

    def of_pair(pair: Pair) -> Facts:
        return {
            "first": pair.first, "second": pair.second, "seeds": pair.num_seeds,
            "ratio": pair.ratio,
            "low": pair.low or None, "high": pair.high if pair.low else None,
            "better": pair.better,
        }  # fmt: skip

    return {
        "steps": results.plan.steps,
        "seeds": list(results.plan.seeds),
        "common_time_s": results.common_time_s,
        "floor": results.floor,
        "untrained": _of_spread(results.untrained),
        "real_valid_share": results.real_valid_share,
        "num_tokens": results.num_tokens,
        "devices": list(results.devices),
        "threads": list(results.threads),
        "kinds": [row(kind) | {"diverged": kind.diverged} for kind in results.kinds],
        "pairs_at_steps": [of_pair(pair) for pair in results.pairs_at_steps],
        "pairs_at_time": [of_pair(pair) for pair in results.pairs_at_time],
    }


def row(kind: KindResult) -> Facts:
    """A kind's numbers under flat names, as in table.csv."""
    valid, step = kind.valid_share, kind.step_s
    return {
        "kind": kind.name,
        "distance_at_equal_steps": kind.at_steps.mean,
        "distance_at_equal_steps_deviation": kind.at_steps.deviation,
        "distance_at_equal_time": kind.at_time.mean,
        "distance_at_equal_time_deviation": kind.at_time.deviation,
        "valid_share": None if valid is None else valid.mean,
        "valid_share_deviation": None if valid is None else valid.deviation,
        "diverged_runs": len(kind.diverged),
        "generator_parameters": kind.kind.generator_parameters,
        "discriminator_parameters": kind.kind.discriminator_parameters,
        "mlp_width": kind.kind.mlp_width,
        "forward_flops_per_clip": kind.forward_flops,
        "activation_bytes_per_clip": kind.activation_bytes,
        "step_compute_s": None if step is None else step.mean,
        "step_compute_s_deviation": None if step is None else step.deviation,
        "step_memory_gib": kind.step_memory_gib,
        "run_memory_gib": kind.run_memory_gib,
    }


def _of_spread(value: Spread) -> Facts:
    return {"mean": value.mean, "deviation": value.deviation, "values": list(value.values)}
