"""The algorithms of a sweep: what each is, what it promises, and what it can't handle.

`suggest` chooses configurations, `tune.early_stopping` stops trials, `tune.population` changes
trials while they train. All three are functions of the seed and of results so far, without Ray.
"""

from collections.abc import Sequence

from distgan.errors import UserError
from tune.distributions import Distribution
from tune.early_stopping import NoStopping, StoppingRule, stopping_rule
from tune.population import decide, is_mutable, mutate
from tune.records import SweepSpec, TrialRecord
from tune.space import Overrides, Space
from tune.tpe import suggest_tpe

__all__ = [
    "Distribution", "NoStopping", "StoppingRule", "check_algorithm", "decide", "mutate",
    "stopping_rule", "suggest",
]  # fmt: skip


def suggest(
    spec: SweepSpec, space: Space, index: int, history: Sequence[Sequence[TrialRecord]]
) -> Overrides:
    """Configuration number `index` (0, 1, ...) of the sweep.

    Of random and pbt it follows from the seed and the index (of random, what was suggested before
    is not suggested again), of a grid from the index; of tpe from the history too, so equal sweeps
    suggest alike where trials run one at a time.

    Args:
        history: the records of each configuration that was started, one for each of its repeats.
    """
    if "grid" in spec.algorithm:
        return space.reduced(space.grid()[index])
    if spec.algorithm == "pbt":  # equal members part when they change
        return space.sample(spec.seed, index)
    tried = [space.base_overrides, *(records[0].overrides for records in history)]
    taken = {space.identity(overrides) for overrides in tried}
    if "tpe" in spec.algorithm:
        return suggest_tpe(spec, space, index, history, taken)
    return space.sample(spec.seed, index, taken=taken)


def check_algorithm(spec: SweepSpec, space: Space) -> None:
    """Raises `UserError` if the algorithm can't do what is asked of it."""
    if "grid" in spec.algorithm:
        size = len(space.grid())
        if spec.num_trials != size:
            raise UserError(
                f"--num-trials {spec.num_trials}: the grid has {size} combinations; leave "
                "--num-trials out, or list fewer values"
            )
    if len(spec.metrics) > 1 and spec.algorithm != "tpe":
        names = ", ".join(metric.name for metric in spec.metrics)
        raise UserError(
            f"--metric: {spec.algorithm} looks at one metric, not at {names}; use --algorithm tpe "
            "for several"
        )
    if spec.algorithm == "pbt":
        _check_pbt(spec, space)
    elif "asha" in spec.algorithm and spec.grace_steps >= spec.max_steps:
        raise UserError(
            f"--grace-steps {spec.grace_steps} is not less than train.max_steps="
            f"{spec.max_steps}: no trial would be stopped; lower it"
        )


def _check_pbt(spec: SweepSpec, space: Space) -> None:
    fixed = [key for key in space.keys if not is_mutable(key)]
    if fixed:
        raise UserError(
            f"pbt changes values while a network trains, and {', '.join(fixed)} can't change then; "
            "take optim.*, loss.*, train.ema_* and train.augment.* keys, or --algorithm asha"
        )
    if spec.num_trials < 4:
        raise UserError(f"--num-trials {spec.num_trials}: pbt needs a population of 4 or more")
    if spec.repeats > 1:
        raise UserError(
            f"--repeats {spec.repeats}: members of a population can't be repeated, as they copy "
            "each other; use --repeats 1"
        )
    if spec.perturbation_steps >= spec.max_steps:
        raise UserError(
            f"--perturbation-steps {spec.perturbation_steps} is not less than train.max_steps="
            f"{spec.max_steps}: nothing would be copied; lower it"
        )
