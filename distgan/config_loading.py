"""Builds a `Config` from a preset, a YAML file and dotted overrides, and names every mistake."""

import difflib
import itertools
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from distgan import storage
from distgan.config import Config
from distgan.config_checks import check_config
from distgan.errors import UserError
from distgan.presets import PRESETS

Tree = dict[str, Any]


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """The checked configuration: preset, then the YAML file's keys, then `a.b.c=value` overrides.

    A file that names a `preset` of its own starts from that one (a saved config.yaml does, and
    then overrides every key of it).

    Raises:
        UserError: an unknown preset or key, a value of the wrong type, an unreadable file, or an
            impossible combination.
    """
    tree: Tree = {}
    from_file = read_yaml(file) if file else {}
    preset = _pick_preset(preset, from_file.get("preset"), str(file))
    if preset != "default":
        for key, value in PRESETS[preset].items():
            _assign(tree, key, value)
        tree["preset"] = preset
    _merge(tree, from_file)
    for key, value in parse_overrides(overrides).items():
        _assign(tree, key, value)
    config = build_config(tree)
    check_config(config)
    return config


def parse_overrides(overrides: Sequence[str]) -> Tree:
    """Dotted key -> value, of texts such as "a.b.c=value"; `UserError` if one is none."""
    values: Tree = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r} has no value; write it as key=value")
        if key.strip() == "preset":
            raise UserError(
                f"override {override!r} would change a preset's name alone; use --preset {text}"
            )
        values[key.strip()] = _parse_value(key, text)
    return values


def build_config(tree: Mapping[str, Any]) -> Config:
    """A `Config` from a nested mapping, without the checks that span keys."""
    _refuse_unknown_keys(tree, Config, "")
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        lines = [
            f"{_dotted(problem['loc'])}={_short(problem['input'])}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise UserError("bad configuration value: " + "; ".join(lines)) from error


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `--config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> plain value, for every leaf."""
    flat: dict[str, Any] = {}

    def walk(tree: Mapping[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    walk(config.model_dump(mode="json"), "")
    return flat


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with dotted keys replaced, checked again."""
    changed = replaced(config, values)
    check_config(changed)
    return changed


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """As `with_values`, without the checks that span keys."""
    tree: Tree = config.model_dump(mode="json")
    for key, value in values.items():
        _assign(tree, key, value)
    return build_config(tree)


def read_yaml(file: Path) -> Tree:
    """The mapping in a YAML file; `UserError` if it can't be read or holds something else."""
    try:
        text = storage.read_bytes(str(file), max_bytes=MOST_YAML_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read the configuration file {file}: {error}") from error
    return parse_yaml(text, str(file))


MOST_YAML_BYTES = 10_000_000
_MOST_VALUES = 10_000
"""In a configuration, aliases (`*name`) written out; a few lines of them can mean billions."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that comes twice (YAML's own rule would silently take the last), too many
    values, and aliases that unfold without end."""

    _composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._composed += 1  # each takes a kilobyte, so not only when all are there
        if self._composed > 2 * _MOST_VALUES:  # keys are nodes, too
            raise _too_many(self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def compose_document(self) -> yaml.Node | None:
        node: yaml.Node | None = super().compose_document()
        if node is not None and _unfolded_size(node, {}) > _MOST_VALUES:
            raise _too_many(node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is no plain text", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} comes twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _too_many(place: yaml.Mark) -> yaml.composer.ComposerError:
    text = f"it holds more than {_MOST_VALUES} values"
    return yaml.composer.ComposerError(None, None, text, place)


def parse_yaml(text: str, source: str) -> Tree:
    """The mapping in YAML text; `source` names it in errors."""
    try:
        tree = _load(text)
    except ValueError as error:
        raise UserError(f"{source} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{source} must hold keys with values, as the config.yaml of a run does")
    return tree


def _load(text: str) -> Any:
    """Plain values from YAML text.

    Raises:
        ValueError: it can't be read.
    """
    try:
        # A SafeLoader: no tag makes a Python object (tests/test_imports.py tries them).
        return yaml.load(text, _StrictLoader)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    # PyYAML's constructors leave numbers, dates and tags that are none to Python's own errors.
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _unfolded_size(node: yaml.Node, known: dict[int, float]) -> float:
    """Values in a node with its aliases written out; infinite if it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is open
        parts: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = itertools.chain.from_iterable(p if isinstance(p, tuple) else (p,) for p in parts)
        known[id(node)] = 1 + sum(_unfolded_size(part, known) for part in inner)
    return known[id(node)]


def _short(value: Any) -> str:
    """For a message: what somebody wrote may be of any length."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def _pick_preset(asked: str | None, in_file: Any, file: str) -> str:
    """The preset to start from; a file that overrides another preset's keys must not mislead."""
    preset = asked or in_file or "default"
    if not isinstance(preset, str) or preset not in {"default", *PRESETS}:
        raise UserError(f"unknown preset {preset!r}; {nearest(str(preset), PRESETS)}")
    if in_file and in_file != preset:
        raise UserError(
            f"--preset {preset}, but {file} says preset: {in_file}; leave one of them out"
        )
    return preset


def _parse_value(key: str, text: str) -> Any:
    try:
        return _load(text) if text else ""
    except ValueError as error:
        raise UserError(f"can't read the value of {key}: {_short(text)}") from error


def _assign(tree: Tree, key: str, value: Any) -> None:
    """Sets a dotted key in a nested mapping."""
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"unknown configuration key {key!r}: {parent!r} is not a section")
        tree = child
    tree[leaf] = value


def _merge(tree: Tree, other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _section_type(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    annotation = model.model_fields[key].annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key, sections among them: they too can be misspelt."""
    keys: list[str] = []
    for key in model.model_fields:
        section = _section_type(model, key)
        keys += [prefix + key, *(_all_keys(section, f"{prefix}{key}.") if section else [])]
    return keys


def _refuse_unknown_keys(tree: Mapping[str, Any], model: type[BaseModel], prefix: str) -> None:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if key not in model.model_fields:
            raise UserError(f"unknown configuration key {dotted!r}; {_hint(dotted)}")
        section = _section_type(model, key)
        if section and isinstance(value, dict):
            _refuse_unknown_keys(value, section, f"{dotted}.")


def _hint(key: str) -> str:
    """What to write instead of an unknown key."""
    if key.startswith("storage.") and re.search("key|secret|token|password|credential", key):
        return (
            "credentials are never in a configuration: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or AWS_SHARED_CREDENTIALS_FILE for a mounted file"
        )
    return nearest(key, _all_keys(Config))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the nearest known name, by the whole name or by its last part, or the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:
        leaf = name.rpartition(".")[2]
        leaves = {candidate.rpartition(".")[2]: candidate for candidate in names}
        close = [
            leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)
        ]
    return f"did you mean {close[0]!r}?" if close else "known are: " + ", ".join(names)


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)
