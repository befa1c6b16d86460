"""Checkpoints and models of somebody who means harm: refused with a message, nothing is run."""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distgan.config_loading import load_config, with_values
from distgan.errors import DistganError, UserError
from distgan.export import load_generator
from distgan.local import train_locally
from tests.hostile import DEEP, Forger, digest, pickled, safetensors, torch_saved
from tests.tiny import TINY

Attack = Callable[[Forger, Path], None]
ATTACKS: dict[str, Attack] = {}


def attack(forge: Attack) -> Attack:
    """`forge(forger, mark)` changes a checkpoint; code in it would leave the file `mark`."""
    ATTACKS[forge.__name__] = forge
    return forge


def put_weights(forger: Forger, data: bytes) -> None:
    forger.put(forger.weights, data)
    forger.commit()


def put_state(forger: Forger, data: bytes) -> None:
    forger.put("state.json", data)
    forger.commit()


def first_tensor(forger: Forger) -> str:
    return next(name for name in forger.manifest["tensors"] if name.startswith("ema/"))


@attack
def a_pickle_for_weights(forger: Forger, mark: Path) -> None:
    put_weights(forger, pickled(mark))


@attack
def a_torch_file_for_weights(forger: Forger, mark: Path) -> None:
    put_weights(forger, torch_saved(mark))


@attack
def a_pickle_for_the_state(forger: Forger, mark: Path) -> None:
    put_state(forger, pickled(mark))


@attack
def a_pickle_for_the_manifest(forger: Forger, mark: Path) -> None:
    forger.commit(pickled(mark))


@attack
def a_pickle_for_the_commit(forger: Forger, mark: Path) -> None:
    (forger.folder / "COMMITTED").write_bytes(pickled(mark))


@attack
def a_file_elsewhere(forger: Forger, mark: Path) -> None:
    outside = forger.folder.parent / "outside.safetensors"
    shutil.copy(forger.folder / forger.weights, outside)
    move_weights(forger, "../outside.safetensors", outside.read_bytes())


@attack
def a_file_by_its_absolute_path(forger: Forger, mark: Path) -> None:
    path = forger.folder / forger.weights
    move_weights(forger, str(path), path.read_bytes())


@attack
def a_file_with_a_zero_byte_in_its_name(forger: Forger, mark: Path) -> None:
    move_weights(forger, "rank\0.safetensors", b"")


def move_weights(forger: Forger, name: str, data: bytes) -> None:
    del forger.manifest["files"][forger.weights]
    forger.know(name, data)
    for pieces in forger.manifest["tensors"].values():
        for piece in pieces:
            piece["file"] = name
    forger.commit()


@attack
def a_link_to_an_endless_device(forger: Forger, mark: Path) -> None:
    (forger.folder / forger.weights).unlink()
    (forger.folder / forger.weights).symlink_to("/dev/zero")


@attack
def a_pipe_that_nobody_fills(forger: Forger, mark: Path) -> None:
    (forger.folder / "state.json").unlink()
    os.mkfifo(forger.folder / "state.json")


@attack
def a_commit_that_is_a_device(forger: Forger, mark: Path) -> None:
    (forger.folder / "COMMITTED").unlink()
    (forger.folder / "COMMITTED").symlink_to("/dev/zero")


@attack
def a_header_of_2_to_the_62_bytes(forger: Forger, mark: Path) -> None:
    put_weights(forger, safetensors({}, length=2**62))


@attack
def a_tensor_of_2_to_the_60_elements(forger: Forger, mark: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 2**62]}
    put_weights(forger, safetensors({first_tensor(forger): entry}))


@attack
def tensors_that_overlap(forger: Forger, mark: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    put_weights(forger, safetensors({"a": entry, "b": entry}, bytes(8)))


@attack
def a_tensor_of_an_odd_type(forger: Forger, mark: Path) -> None:
    entry = {"dtype": "PICKLE", "shape": [2], "data_offsets": [0, 8]}
    put_weights(forger, safetensors({first_tensor(forger): entry}, bytes(8)))


@attack
def a_header_that_nests_deeply(forger: Forger, mark: Path) -> None:
    put_weights(forger, safetensors(DEEP))


@attack
def a_state_that_nests_deeply(forger: Forger, mark: Path) -> None:
    put_state(forger, b'{"step": ' + DEEP + b"}")


@attack
def a_manifest_that_nests_deeply(forger: Forger, mark: Path) -> None:
    forger.commit(b'{"files": ' + DEEP + b"}")


@attack
def a_state_that_is_no_number(forger: Forger, mark: Path) -> None:
    forger.change_state(lambda state: state.update(frame_rate_hz=float("nan")))
    forger.commit()


@attack
def a_state_out_of_range(forger: Forger, mark: Path) -> None:
    put_state(forger, b'{"step": 1e999}')


@attack
def a_state_of_a_million_digits(forger: Forger, mark: Path) -> None:
    put_state(forger, b'{"step": ' + b"9" * 1_000_000 + b"}")


@attack
def a_state_with_a_key_twice(forger: Forger, mark: Path) -> None:
    put_state(forger, b'{"step": 12, "step": 13}')


@attack
def a_state_that_is_a_list(forger: Forger, mark: Path) -> None:
    put_state(forger, b"[]")


@attack
def no_state(forger: Forger, mark: Path) -> None:
    del forger.manifest["files"]["state.json"]
    forger.commit()


@attack
def an_empty_state(forger: Forger, mark: Path) -> None:
    put_state(forger, b"{}")


@attack
def a_piece_used_a_million_times(forger: Forger, mark: Path) -> None:
    """Some kilobytes that would unfold to gigabytes."""
    name = first_tensor(forger)
    (piece,) = forger.manifest["tensors"][name]
    count = 20_000
    forger.manifest["tensors"][name] = [
        piece | {"start": n * piece["count"], "shape": [count * piece["count"]]}
        for n in range(count)
    ]
    forger.commit()


@attack
def a_negative_shape(forger: Forger, mark: Path) -> None:
    forger.manifest["tensors"][first_tensor(forger)][0]["shape"] = [-1, -1]
    forger.commit()


@attack
def a_piece_of_a_file_that_is_not_there(forger: Forger, mark: Path) -> None:
    forger.manifest["tensors"][first_tensor(forger)][0]["file"] = "other.safetensors"
    forger.commit()


@attack
def a_tensor_of_no_pieces(forger: Forger, mark: Path) -> None:
    forger.manifest["tensors"][first_tensor(forger)] = []
    forger.commit()


@attack
def a_configuration_of_terabytes(forger: Forger, mark: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        state["config"]["model"]["generator"]["channels"] = [2**24, 2**24]

    forger.change_state(change)
    forger.commit()


@attack
def a_configuration_of_endless_layers(forger: Forger, mark: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        state["config"]["model"]["generator"]["blocks"] = 10**9

    forger.change_state(change)
    forger.commit()


@attack
def a_configuration_that_names_another_class(forger: Forger, mark: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        state["config"]["model"]["class"] = "os.system"

    forger.change_state(change)
    forger.commit()


@pytest.fixture(scope="module")
def run(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose only checkpoint is of step 4."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    train(folder, tiny_data)
    return folder


def train(run: Path, data: str) -> None:
    keys = {"run.dir": str(run), "data.shards": data, "train.max_steps": 4}
    train_locally(with_values(load_config(overrides=TINY), keys), show_progress=False)


@pytest.fixture
def forger(run: Path, tmp_path: Path) -> Forger:
    """Of a copy, in `tmp_path / "run"`."""
    shutil.copytree(run, tmp_path / "run")
    return Forger(tmp_path / "run" / "checkpoints" / "step_00000004")


@pytest.fixture(autouse=True)
def little_time_and_memory() -> Iterator[None]:
    start, before = time.monotonic(), peak_bytes()
    yield
    assert time.monotonic() - start < 30
    assert peak_bytes() - before < 500 * 2**20


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_there_are_attacks_enough() -> None:
    assert len(ATTACKS) >= 20


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_checkpoint_is_refused_and_nothing_in_it_runs(
    name: str, forger: Forger, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    ATTACKS[name](forger, mark)
    with pytest.raises(UserError) as raised:
        load_generator(str(tmp_path / "run"), torch.device("cpu"))
    assert "step_00000004" in str(raised.value) or "generator" in str(raised.value)
    assert len(str(raised.value)) < 2000
    assert not mark.exists()


def test_the_payload_would_run(tmp_path: Path) -> None:
    """Else the attacks above would prove nothing. It is ours, made here, and only writes a file."""
    import pickle

    pickle.loads(pickled(tmp_path / "ran")).close()  # noqa: S301 - our own, made here
    assert (tmp_path / "ran").exists()


STATES: dict[str, Callable[[dict[str, Any]], None]] = {
    "no rules": lambda state: state.pop("rules"),
    "rules of another kind": lambda state: state.update(rules=[1, 2]),
    "no stream": lambda state: state.pop("stream"),
    "means of another kind": lambda state: state.update(means={"loss/generator": "x"}),
    "another step": lambda state: state.update(step=10**30),
    "seconds of another kind": lambda state: state.update(seconds={}),
    "damage in shards that are none": lambda state: state["stream"].update(
        damage={"99999": {"problem": "x", "samples": {"0": "crc32"}}}
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_a_run_does_not_go_on_from_a_forged_state(
    name: str, forger: Forger, tmp_path: Path, tiny_data: str
) -> None:
    forger.change_state(STATES[name])
    forger.commit()
    with pytest.raises(UserError, match="step_00000004"):
        train(tmp_path / "run", tiny_data)


def test_weights_of_another_shape_are_not_spread_over_the_network(
    forger: Forger, tmp_path: Path, tiny_data: str
) -> None:
    """PyTorch would copy a single number into a whole matrix."""
    names = [n for n in forger.manifest["tensors"] if n.startswith("generator/")]
    wide = next(n for n in names if len(forger.manifest["tensors"][n][0]["shape"]) > 1)
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    forger.put("small.safetensors", safetensors({wide: entry}, bytes(4)))
    forger.manifest["tensors"][wide] = [
        {"file": "small.safetensors", "start": 0, "count": 1, "shape": [1]}
    ]
    forger.commit()
    with pytest.raises(UserError, match="has shape"):
        train(tmp_path / "run", tiny_data)


def test_an_optimizer_s_state_of_another_shape_is_refused(
    forger: Forger, tmp_path: Path, tiny_data: str
) -> None:
    names = [n for n in forger.manifest["tensors"] if n.startswith("generator.optimizer/")]
    wide = next(n for n in names if len(forger.manifest["tensors"][n][0]["shape"]) > 1)
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    forger.put("small.safetensors", safetensors({wide: entry}, bytes(4)))
    forger.manifest["tensors"][wide] = [
        {"file": "small.safetensors", "start": 0, "count": 1, "shape": [1]}
    ]
    forger.commit()
    with pytest.raises(UserError, match="has shape"):
        train(tmp_path / "run", tiny_data)


@pytest.fixture
def export(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run / "generator", tmp_path / "export"))


EXPORTS: dict[str, Callable[[dict[str, Any], Path], bytes | None]] = {
    "a pickle": lambda facts, mark: pickled(mark),
    "a torch file": lambda facts, mark: torch_saved(mark),
    "a huge header": lambda facts, mark: safetensors({}, length=2**40),
    "terabytes": lambda facts, mark: facts["config"]["data"].update(resolution=2**40),
    "endless layers": lambda facts, mark: facts["config"]["model"]["generator"].update(
        blocks=10**9
    ),
    "a list": lambda facts, mark: facts.update(config=[]),
    "a frame rate that is none": lambda facts, mark: facts.update(frame_rate_hz=1e300),
    "a step that is none": lambda facts, mark: facts.update(step=[]),
    "no digest": lambda facts, mark: facts.update(weights_sha256=None),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_hostile_model_is_refused_and_nothing_in_it_runs(
    name: str, export: Path, tmp_path: Path
) -> None:
    facts = json.loads((export / "generator.json").read_bytes())
    weights = EXPORTS[name](facts, tmp_path / "ran")
    if weights is not None:
        (export / "model.safetensors").write_bytes(weights)
        facts["weights_sha256"] = digest(weights)
    (export / "generator.json").write_text(json.dumps(facts))
    with pytest.raises(DistganError):
        load_generator(str(export), torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_a_description_that_nests_deeply_is_refused(export: Path) -> None:
    (export / "generator.json").write_bytes(DEEP)
    with pytest.raises(UserError, match=r"can't be read"):
        load_generator(str(export), torch.device("cpu"))
