"""Input made by chance: what can't be used is refused by an error of the project's own, in time.

`make soak` runs the same with many more examples.
"""

import contextlib
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distgan.checkpoint import load_newest
from distgan.config_checks import check_config
from distgan.config_loading import build_config, flatten, load_config, parse_yaml
from distgan.data.clip_formats import decode, encode
from distgan.data.manifest import MANIFEST_NAME, read_manifest
from distgan.data.tars import read_members
from distgan.errors import DistganError
from distgan.strict_json import parse_object
from tests.checkpoints import save
from tests.hostile import Forger, npy, safetensors
from tests.test_hostile_shards import clip_like, member, shard_like, tar_of

MANY = 20_000
DEADLINE_MS = 5_000
KEYS = sorted(flatten(load_config()))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
clip_bytes = encode(np.zeros((4, 16, 16, 3), np.uint8), 8, "mp4")


def fuzzed(examples: int, **strategies: st.SearchStrategy[Any]) -> Callable[..., Any]:
    """A test with so many examples, the same in every run; and a long one under `soak`."""

    def decorate(test: Callable[..., None]) -> Any:
        def run(count: int) -> None:
            options = settings(
                max_examples=count, deadline=DEADLINE_MS, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            options(given(**strategies)(test))()

        counts = [examples, pytest.param(MANY, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])]
        return pytest.mark.parametrize("count", counts, ids=["short", "long"])(run)

    return decorate


refused = contextlib.suppress(DistganError)
"""Any other exception fails the test, and so does one that takes longer than the deadline."""


def mutated(data: bytes, seed: int) -> bytes:
    """With bytes flipped, cut, repeated or put in, where chance will have it."""
    rng, changed = random.Random(seed), bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place, length = rng.randrange(len(changed) + 1), rng.choice((1, 2, 8, 100))
        match rng.randrange(4):
            case 0:
                changed[place : place + length] = rng.randbytes(length)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[max(place - length, 0) : place]
            case 3:
                changed[place : place + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0")
                )
    return bytes(changed)


@fuzzed(40, text=st.text(max_size=60))
def test_yaml_of_any_text(text: str) -> None:
    with refused:
        parse_yaml(text, "a file")


YAML_PIECES = st.sampled_from(
    ["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", "&x ", "*x", "<<: ", "!!int ", "!!float ",
     "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!python/name:os.system ", "? ", "| ", "> ",
     "'", '"', "2001-99-99", "1:99:99", "0x", "0b2", ".inf", "1e999", "%TAG ! x\n", "---\n", "~",
     "seed", "train", "max_steps", "\t", "\\", "#", ", ", "9" * 5000, "\ud800", "\0"]
)  # fmt: skip


@fuzzed(200, pieces=st.lists(YAML_PIECES, max_size=12))
def test_yaml_of_its_own_signs(pieces: list[str]) -> None:
    with refused:
        build_config(parse_yaml("".join(pieces), "a file"))


@fuzzed(60, key=st.sampled_from(KEYS), pieces=st.lists(YAML_PIECES, max_size=5))
def test_overrides(key: str, pieces: list[str]) -> None:
    with refused:
        load_config(overrides=[f"{key}={''.join(pieces)}"])


@fuzzed(80, key=st.sampled_from(KEYS), value=json_values)
def test_values_of_configuration_keys(key: str, value: Any) -> None:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    with refused:
        check_config(build_config(tree))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10_000,
        "a: " * 5000,
        "? [a]\n: 1",
        "a: &a [*a]",
        "seed: " + "9" * 10_000,
        "seed: !!timestamp x",
        "seed: 2001-99-99",
        "seed: [" + "x, " * 5000 + "]",
        "l0: &l0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "\n".join(f"l{n}: &l{n} [{','.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10))
        + "\nseed: *l9",
    ],
    ids=["brackets", "colons", "key", "itself", "digits", "tag", "date", "list", "billion laughs"],
)
def test_yaml_that_is_known_to_hurt(text: str) -> None:
    with pytest.raises(DistganError) as raised:
        build_config(parse_yaml(text, "a file"))
    assert len(str(raised.value)) < 2000


@fuzzed(150, data=st.binary(max_size=60) | st.text(max_size=60))
def test_json_of_anything(data: Any) -> None:
    with contextlib.suppress(ValueError):
        parse_object(data)


@fuzzed(60, seed=st.integers(0, 2**32), value=json_values)
def test_manifests(seed: int, value: Any) -> None:
    rng = random.Random(seed)
    field = rng.choice(["name", "samples", "bytes", "sha256", "keys", "crc32"])
    whole = shard_like(**{field: value}) if seed % 2 else clip_like(resolution=value)
    with tempfile.TemporaryDirectory() as folder, refused:
        Path(folder, MANIFEST_NAME).write_bytes(whole if seed % 3 else mutated(whole, seed))
        read_manifest(folder)


@fuzzed(150, seed=st.integers(0, 2**32))
def test_tars(seed: int) -> None:
    """Whatever is wrong with a tar, the search for its members ends, without an error."""
    whole = tar_of(member("a.npy", b"x" * 600), member("x" * 150, b"{}"), member("b.json", b"1"))
    read_members(mutated(whole, seed))


@fuzzed(150, seed=st.integers(0, 2**32))
def test_clips(seed: int) -> None:
    with contextlib.suppress(ValueError):
        decode(mutated(clip_bytes, seed), "mp4")


@fuzzed(150, header=st.text(st.characters(max_codepoint=255), max_size=40), seed=st.integers(0, 99))
def test_npy_headers(header: str, seed: int) -> None:
    whole = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 3), }", b"abc")
    for data in (npy(header), mutated(whole, seed)):
        with contextlib.suppress(ValueError):
            decode(data, "npy")


@fuzzed(40, seed=st.integers(0, 2**32), value=json_values)
def test_checkpoints(seed: int, value: Any) -> None:
    """Headers, manifests and states, with digests that fit what they say."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        forger = Forger(save(Path(folder), 4))
        weights = next(n for n in forger.manifest["files"] if n.endswith(".safetensors"))
        match seed % 5:
            case 0:
                forger.put(weights, mutated((forger.folder / weights).read_bytes(), seed))
            case 1:
                forger.put(weights, safetensors({rng.choice(["a", "count"]): value}, bytes(8)))
            case 2:
                forger.put("state.json", json.dumps(value).encode())
            case 3:
                name = rng.choice(sorted(forger.manifest["tensors"]))
                key = rng.choice(["file", "start", "count", "shape"])
                forger.manifest["tensors"][name][0][key] = value
            case 4:
                forger.manifest[rng.choice(["files", "tensors", "version", "x"])] = value
        data = json.dumps(forger.manifest).encode()
        forger.commit(mutated(data, seed) if seed % 7 == 0 else data)
        with refused:
            load_newest(folder)


def test_a_saved_configuration_needs_no_alias() -> None:
    """Or the limit on them could refuse one."""
    from distgan.config_loading import dump_yaml

    for preset in (None, "article"):
        text = dump_yaml(load_config(preset))
        assert "*id" not in text and yaml.safe_load(text)
