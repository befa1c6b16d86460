"""Population-based training (Jaderberg et al. 2017), in generations.

All members train for the same number of steps; then the worst quarter copy the whole state (both
networks, optimizers, average, counters) of members of the best quarter, chosen by chance, and
change their hyperparameters a little. Members that diverged are replaced too. What is decided
follows from the seed, the step and the members' values alone.
"""

import json
import math
from collections.abc import Mapping, Sequence

from pydantic import Field, JsonValue, ValidationError

from distgan import storage
from distgan.config_section import Section
from distgan.errors import UserError
from distgan.seeding import numpy_generator
from tune.records import SweepSpec, TrialRecord
from tune.space import MAX_DRAWS, Overrides, Space

POPULATION = "population.json"
_SHARE = 0.25
_RESAMPLE = 0.25

# What may change while a network trains: neither its shape, nor what its optimizer remembers, nor
# the order of the data.
MUTABLE = ("optim.", "loss.", "train.ema_", "train.augment.")
_FIXED = ("optim.generator.kind", "optim.discriminator.kind")


class Change(Section):
    """A member that goes on as a changed copy of another."""

    parent: str
    parent_step: int
    parent_values: dict[str, float]
    overrides: dict[str, JsonValue]


class Generation(Section):
    """What was decided when all members had trained up to a step."""

    step: int
    changes: dict[str, Change] = Field(default_factory=dict)
    """By the member's trial id; others go on as they are."""


def is_mutable(key: str) -> bool:
    return key.startswith(MUTABLE) and key not in _FIXED


def boundaries(spec: SweepSpec) -> list[int]:
    """The steps at which members are compared, before the last one."""
    interval = spec.perturbation_steps or max(spec.max_steps // 5, 1)
    return list(range(interval, spec.max_steps, interval))


def decide(spec: SweepSpec, space: Space, step: int, members: Sequence[TrialRecord]) -> Generation:
    """Who copies whom, and with which hyperparameters.

    Args:
        step: the boundary at which all members have arrived, or ended badly.
    """
    metric = spec.metrics[0]
    sign = 1 if metric.mode == "min" else -1

    def loss(member: TrialRecord) -> float:
        value = sign * member.values.get(metric.name, math.nan)
        return math.inf if math.isnan(value) else value

    sound = sorted(
        (m for m in members if m.status == "running" and math.isfinite(loss(m))),
        key=lambda m: (loss(m), m.trial_id),
    )
    count = min(math.ceil(len(members) * _SHARE), len(sound) // 2) or (len(sound) and 1)
    donors = sound[:count]
    last = sound[len(sound) - count :] if len(sound) > 1 else []
    broken = [
        m
        for m in members
        if m.status == "diverged" or (m.status == "running" and not math.isfinite(loss(m)))
    ]
    changes: dict[str, Change] = {}
    for member in (*last, *broken):
        if not donors:
            break
        rng = numpy_generator(spec.seed, f"donor {member.trial_id}", step)
        donor = donors[int(rng.integers(len(donors)))]
        changes[member.trial_id] = Change(
            parent=donor.trial_id,
            parent_step=donor.step,
            parent_values=donor.values,
            overrides=mutate(spec, space, donor.overrides, f"{member.trial_id}", step),
        )
    return Generation(step=step, changes=changes)


def mutate(
    spec: SweepSpec, space: Space, overrides: Mapping[str, JsonValue], member: str, step: int
) -> Overrides:
    """A possible combination nearby: each value moves a little, or is drawn anew (one in four)."""
    for attempt in range(MAX_DRAWS):
        changed: Overrides = {}
        for key, distribution in space.keys.items():
            rng = numpy_generator(spec.seed, f"mutate {member} {key}", step, attempt)
            if rng.random() < _RESAMPLE:
                changed[key] = distribution.sample(rng)
            else:
                changed[key] = distribution.perturb(overrides[key], rng)
        if not space.problem(changed):
            return changed
    return dict(overrides)


def read_generations(folder: str) -> list[Generation]:
    """What was decided so far, oldest first; `UserError` if the file is damaged."""
    path = storage.join(folder, POPULATION)
    try:
        return [Generation.model_validate(tree) for tree in json.loads(storage.read_bytes(path))]
    except FileNotFoundError:
        return []
    except (ValidationError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; start the sweep anew elsewhere") from error


def write_generations(folder: str, generations: Sequence[Generation]) -> None:
    tree = [generation.model_dump(mode="json") for generation in generations]
    data = json.dumps(tree, indent=1).encode()
    storage.write_bytes(storage.join(folder, POPULATION), data)
