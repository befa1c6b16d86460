"""What a sweep searches: dotted configuration keys, each with a distribution."""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from distgan.config import Config
from distgan.config_loading import flatten, nearest, read_yaml, replaced, with_values
from distgan.errors import UserError
from distgan.seeding import numpy_generator
from tune.distributions import Distribution, parse_distribution
from tune.spaces import SPACES
from tune.twins import identity, inert_keys

Overrides = dict[str, JsonValue]
MAX_DRAWS = 200
"""So many impossible combinations in a row, and the space is taken for contradictory."""
MAX_ROWS = 100_000
"""Spaces of more combinations than this are not counted: nobody trains them all."""
MAX_GRID = 10_000
"""Trials of the largest grid."""

# Keys that name no hyperparameter, and what to do instead.
_NOT_SEARCHED = {
    "seed": "use --repeats to train each configuration with several seeds",
    "preset": "choose one with --preset",
    "run.": "the sweep gives each trial a folder of its own",
    "train.max_steps": "all trials have the same budget; asha stops the worse ones early",
    "train.device": "set it for the whole sweep",
    "stop.metric": "set it for the whole sweep",
    "data.shards": "start one sweep for each data set",
    "data.cache_": "set it for the whole sweep",
    "prepare.": "start one sweep for each data set",
    "log.": "set it for the whole sweep",
    "checkpoint.": "set it for the whole sweep",
    "storage.": "set it for the whole sweep",
    "cluster.": "every trial gets the same devices; set it for the whole sweep",
}
_SEARCHED_ALL_THE_SAME = ("cluster.generator.", "cluster.discriminator.")


class Space:
    """The distributions, checked against a base configuration."""

    def __init__(self, tree: Mapping[str, object], base: Config) -> None:
        """`tree`: dotted key -> {kind: values}, as in a space file.

        Raises:
            UserError: the space is empty, names a key that the configuration lacks or that can't
                be searched, holds a value of the wrong type, or no possible combination.
        """
        if not tree:
            raise UserError("the search space is empty; give a key, such as "
                            "optim.generator.lr: {loguniform: [1e-5, 1e-3]}")  # fmt: skip
        self.base, self.flat_base = base, flatten(base)
        self.keys = {key: self._checked(key, given) for key, given in tree.items()}
        self.base_overrides: Overrides = {key: self.flat_base[key] for key in self.keys}
        self._refuse_contradictions()

    def problem(self, overrides: Mapping[str, JsonValue]) -> str:
        """Why this combination can't be trained; empty if it can."""
        try:
            with_values(self.base, overrides)
        except UserError as error:
            return str(error)
        return ""

    def reduced(self, overrides: Mapping[str, JsonValue]) -> Overrides:
        """The same training, with the base's values where a key has no say in it."""
        inert = inert_keys({**self.flat_base, **overrides})
        return {k: self.flat_base[k] if k in inert else value for k, value in overrides.items()}

    def identity(self, overrides: Mapping[str, JsonValue]) -> str:
        """Equal for combinations that are the same training."""
        return identity({**self.flat_base, **self.reduced(overrides)}, self.keys)

    def sample(
        self, seed: int, index: int, purpose: str = "sample", taken: Collection[str] = ()
    ) -> Overrides:
        """A possible combination, by chance; it follows from (seed, purpose, index, taken) alone.

        Each key draws for itself: another key in the space leaves its draws as they are, unless a
        combination is impossible or taken, and drawn again.

        Args:
            taken: identities of combinations that are not wanted once more.
        """
        problem, repeated = "", False
        for attempt in range(MAX_DRAWS):
            drawn = self.reduced({
                key: distribution.sample(numpy_generator(seed, f"{purpose} {key}", index, attempt))
                for key, distribution in self.keys.items()
            })  # fmt: skip
            if self.identity(drawn) in taken:
                repeated = True
                continue
            problem = self.problem(drawn)
            if not problem:
                return drawn
        if repeated:  # chance hardly finds the last ones
            for other in self.others(taken):
                return other
            raise UserError("every combination of the search space has been tried; add values")
        raise UserError(
            f"{MAX_DRAWS} combinations drawn from the search space are all impossible; the last "
            f"one: {problem}"
        )

    def others(self, taken: Collection[str]) -> Iterator[Overrides]:
        """The possible combinations that are not taken, each once, the last key fastest; one value
        stands for a continuum."""
        seen = set(taken)
        for raw in self._rows(MAX_ROWS):
            row = self.reduced(raw)
            name = self.identity(row)
            if name not in seen:
                seen.add(name)
                if not self.problem(row):
                    yield row

    def count(self, limit: int) -> int:
        """How many unlike combinations there are beside the base; `limit` if that many or more."""
        endless = {key for key, each in self.keys.items() if each.size is None}
        if self._size() > MAX_ROWS:
            return limit
        found = 0
        for row in self.others({self.identity(self.base_overrides)}):
            if endless - inert_keys({**self.flat_base, **row}):
                return limit
            found += 1
            if found >= limit:
                break
        return found

    def grid(self) -> list[Overrides]:
        """Every combination, the last key fastest; impossible ones are among them.

        Raises:
            UserError: a key has a continuum of values, or there are more than `MAX_GRID`.
        """
        for key, each in self.keys.items():
            if each.size is None:
                raise UserError(
                    f"{key}: a grid can't hold all of {each.kind}; list values, such as "
                    f"{key}: {{grid: {each.examples()}}}, or use --algorithm random or tpe"
                )
        if self._size() > MAX_GRID:
            raise UserError(
                f"the grid has {self._size()} combinations, more than {MAX_GRID}; list fewer "
                "values, or use --algorithm random or tpe"
            )
        return list(self._rows(MAX_GRID))

    def _checked(self, key: str, given: object) -> Distribution:
        if not key.startswith(_SEARCHED_ALL_THE_SAME):
            for refused, instead in _NOT_SEARCHED.items():
                if key == refused or (refused[-1] in "._" and key.startswith(refused)):
                    raise UserError(f"{key} can't be searched; {instead}")
        distribution = parse_distribution(key, given)
        # As the configuration holds them: "1e-5", which YAML takes for text, becomes a number.
        canonical = [self._canonical(key, value) for value in distribution.examples()]
        if not distribution.is_listed:
            return distribution
        for place, value in enumerate(canonical):
            if value in canonical[:place]:
                raise UserError(f"{key}: the value {value!r} comes twice; leave one out")
        return Distribution(kind=distribution.kind, values=tuple(canonical))

    def _canonical(self, key: str, value: JsonValue) -> JsonValue:
        """Raises `UserError` if there is no such key, or it takes no such value."""
        flat = flatten(replaced(self.base, {key: value}))
        if key not in flat:
            raise UserError(f"{key} is a section of the configuration; give one of its keys: "
                            f"{', '.join(k for k in flat if k.startswith(key))}")  # fmt: skip
        canonical: JsonValue = flat[key]
        return canonical

    def _refuse_contradictions(self) -> None:
        if all(distribution.is_listed for distribution in self.keys.values()):
            problems = [self.problem(row) for row in self._rows(MAX_DRAWS)]
            if "" not in problems and len(problems) < MAX_DRAWS:
                raise UserError(
                    f"the search space has no possible combination; the first one: {problems[0]}"
                )
        self.sample(0, 0)

    def _size(self) -> int:
        """How many combinations there are; a continuum counts as one value."""
        return math.prod(each.size or 1 for each in self.keys.values())

    def _rows(self, most: int) -> Iterator[Overrides]:
        """The first combinations, the last key fastest; one value stands for a continuum."""
        for number in range(min(self._size(), most)):
            row: Overrides = {}
            for key, each in reversed(self.keys.items()):
                number, place = divmod(number, each.size or 1)
                row[key] = each.examples()[1] if each.size is None else each.value_at(place)
            yield {key: row[key] for key in self.keys}


def read_space(name: str) -> dict[str, object]:
    """A ready space by its name, or the content of a YAML file.

    Raises:
        UserError: neither; or the file can't be read.
    """
    if name in SPACES:
        return dict(SPACES[name])
    file = Path(name)
    if not file.exists() and file.suffix not in (".yaml", ".yml"):
        raise UserError(f"--space {name}: no such file, nor a ready space; {nearest(name, SPACES)}")
    return dict(read_yaml(file))
