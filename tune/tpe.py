"""Suggestions of a tree-structured Parzen estimator, Optuna's (Bergstra et al. 2011; for several
metrics Ozaki et al. 2020).

A suggestion is a pure function of the seed, its index and the results so far: Optuna's study is
built anew for each. So nothing needs to be pickled, and a sweep that was interrupted goes on with
the suggestions that it would have made.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import JsonValue

from distgan.errors import UserError
from distgan.seeding import derive_seed
from tune.distributions import Distribution
from tune.records import SweepSpec, TrialRecord
from tune.space import MAX_DRAWS, Overrides, Space
from tune.twins import inert_keys

STARTUP = 6
"""The first suggestions are by chance: an estimate needs something to look at."""
_MOST_REPEATED = 20
"""Suggestions of what was tried before; then chance chooses among the others."""


def suggest_tpe(
    spec: SweepSpec,
    space: Space,
    index: int,
    history: Sequence[Sequence[TrialRecord]],
    taken: Collection[str] = (),
) -> Overrides:
    """The configuration number `index`.

    Args:
        history: the records of each configuration so far, one for each of its repeats.
        taken: identities of configurations that are not wanted once more.

    Raises:
        UserError: nothing but impossible combinations is suggested.
    """
    if len(history) < STARTUP:
        return space.sample(spec.seed, index, taken=taken)
    distributions = {key: _to_optuna(d) for key, d in space.keys.items()}
    told = _told(spec, space, history, distributions)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    repeated = 0
    try:
        for attempt in range(MAX_DRAWS):
            sampler = TPESampler(
                seed=derive_seed(spec.seed, "tpe", index, attempt) % 2**32,
                n_startup_trials=STARTUP,
                constant_liar=True,  # configurations that still train are kept away from
            )
            study = optuna.create_study(
                sampler=sampler,
                directions=["minimize" if m.mode == "min" else "maximize" for m in spec.metrics],
            )
            study.add_trials(told)
            asked = study.ask(distributions)
            drawn = {key: _from_optuna(d, asked.params[key]) for key, d in space.keys.items()}
            overrides = space.reduced(drawn)
            if space.identity(overrides) in taken:
                repeated += 1
                if repeated == _MOST_REPEATED:
                    return space.sample(spec.seed, index, taken=taken)
                continue
            problem = space.problem(overrides)
            if not problem:
                return overrides
    finally:
        optuna.logging.set_verbosity(verbosity)
    raise UserError(
        f"{MAX_DRAWS} suggestions in a row are impossible combinations; the last one: {problem}"
    )


def _told(
    spec: SweepSpec,
    space: Space,
    history: Sequence[Sequence[TrialRecord]],
    distributions: Mapping[str, BaseDistribution],
) -> list[FrozenTrial]:
    """The history as Optuna takes it. Bad ends count as the worst value of any configuration."""
    means = [_mean_values(spec, records) for records in history]
    known = [values for values in means if values is not None]
    worst = [
        (max if metric.mode == "min" else min)(column)
        for metric, column in zip(spec.metrics, zip(*known, strict=True), strict=False)
    ]
    told = []
    for records, values in zip(history, means, strict=True):
        # Keys without a say tell nothing; the base's values, which they hold, may be no others'.
        inert = inert_keys({**space.flat_base, **records[0].overrides})
        overrides = {k: value for k, value in records[0].overrides.items() if k not in inert}
        if not all(space.keys[key].contains(value) for key, value in overrides.items()):
            continue  # the base configuration may lie outside of the space
        params = {key: _as_param(space.keys[key], value) for key, value in overrides.items()}
        known_here = {key: distributions[key] for key in params}
        bad = any(record.status in ("diverged", "failed") for record in records)
        if any(record.status == "running" for record in records):
            told.append(create_trial(
                state=TrialState.RUNNING, params=params, distributions=known_here
            ))  # fmt: skip
        elif (bad or values is None) and worst:
            told.append(create_trial(
                values=worst, params=params, distributions=known_here
            ))  # fmt: skip
        elif values is not None:
            told.append(create_trial(
                values=values, params=params, distributions=known_here
            ))  # fmt: skip
    return told


def _mean_values(spec: SweepSpec, records: Sequence[TrialRecord]) -> list[float] | None:
    """Of all metrics over the repeats that have finite ones; None if none has."""
    rows = [[record.values.get(m.name, math.nan) for m in spec.metrics] for record in records]
    finite = [row for row in rows if all(map(math.isfinite, row))]
    return [float(mean) for mean in np.mean(finite, axis=0)] if finite else None


def _to_optuna(distribution: Distribution) -> BaseDistribution:
    if distribution.is_listed:  # as text: a value may be a list, which Optuna would not take
        return CategoricalDistribution([json.dumps(value) for value in distribution.values])
    low, high = distribution.low, distribution.high
    if distribution.is_whole:
        return IntDistribution(int(low), int(high))
    if distribution.kind == "quniform":
        assert distribution.size is not None
        return IntDistribution(0, distribution.size - 1)
    return FloatDistribution(low, high, log=distribution.kind == "loguniform")


def _as_param(distribution: Distribution, value: JsonValue) -> JsonValue:
    if distribution.is_listed:
        return json.dumps(value)
    if distribution.kind == "quniform":
        return distribution.index_of(value)
    return value


def _from_optuna(distribution: Distribution, param: JsonValue) -> JsonValue:
    if distribution.is_listed:
        assert isinstance(param, str)
        value: JsonValue = json.loads(param)
        return value
    if distribution.kind == "quniform":
        assert isinstance(param, int)
        return distribution.value_at(param)
    return param
