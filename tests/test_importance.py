"""Hyperparameters that matter are found, others are not, and luck is called luck."""

import math

import numpy as np
import pytest

from tune.importance import LEAST_TRIALS, explained_share, importances


def random_columns(seed: int, trials: int) -> dict[str, list[object]]:
    generator = np.random.default_rng(seed)
    return {
        "optim.generator.lr": list(np.exp(generator.uniform(-12, -5, trials))),
        "model.attention.kind": list(generator.choice(["self", "none"], trials)),
        "model.attention.heads": list(generator.integers(1, 9, trials).tolist()),
    }


def test_share_is_the_rank_form_of_epsilon_squared() -> None:
    # Levels (1, 2), (3, 4) of ranks 1 ... 4: between 4, total 5, so 1 - (1 / 5) * 3 / 2.
    levels, ranks = np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 3.0, 4.0])
    assert explained_share(levels, ranks) == pytest.approx(0.7)
    assert explained_share(np.array([0, 1, 0, 1]), np.array([1.0, 2.0, 4.0, 3.0])) == 0.0


def test_what_decides_is_found_with_twelve_trials() -> None:
    columns = random_columns(0, 12)
    scores = [abs(math.log(lr) + 8.5) for lr in columns["optim.generator.lr"]]  # type: ignore[arg-type]
    found = importances(columns, scores)
    assert found[0].key == "optim.generator.lr" and found[0].stands_out
    assert not any(importance.stands_out for importance in found[1:])
    # The optimum inside the range is seen: the middle third is the best level.
    thirds = sorted(columns["optim.generator.lr"])  # type: ignore[type-var]
    assert found[0].levels[0].name == f"{thirds[4]:.3g} to {thirds[7]:.3g}"
    assert found[0].low <= found[0].share <= found[0].high


def test_luck_rarely_stands_out() -> None:
    """Scores that no hyperparameter decides: at most 1 in 20 sweeps may name one."""
    named = 0
    for seed in range(60):
        scores = np.random.default_rng(seed + 1000).normal(size=12).tolist()
        named += any(i.stands_out for i in importances(random_columns(seed, 12), scores))
    assert named <= 8  # 3 are expected; 9 or more have a chance below 0.3 %


def test_the_same_training_counts_once() -> None:
    """Ten trials of two configurations are two results, however often they were had."""
    columns: dict[str, list[object]] = {"kind": ["none", "self"] * 5, "heads": [4] * 10}
    assert importances(columns, [1.0, 2.0] * 5) == []
    assert importances(columns, [1.0, 2.0, *(2 + place / 10 for place in range(8))])


def test_diverged_trials_count_as_worst() -> None:
    columns = {"lr": [1e-5, 1e-4, 1e-5, 1e-4, 1e-2, 1e-2, 1e-2, 1e-2]}
    scores = [5.0, 5.1, 5.2, 5.3, *[math.inf] * 4]
    [importance] = importances(columns, scores)
    assert importance.levels[-1].name == "0.01" and importance.stands_out


def test_too_few_trials_or_nothing_that_varies_tell_nothing() -> None:
    few = LEAST_TRIALS - 1
    assert importances(random_columns(0, few), list(range(few))) == []
    assert importances({"a": ["x"] * 12}, list(range(12))) == []
    assert importances({"a": list(range(12))}, [1.0] * 12) == []
    assert importances({}, []) == []


def test_the_same_trials_give_the_same_answer() -> None:
    columns, scores = random_columns(3, 20), list(range(20))
    assert importances(columns, scores) == importances(columns, scores)
