"""Checkpoints: one commit for everything, made of fragments, found and checked in storage.

A checkpoint is a folder `checkpoints/step_00000840/` with safetensors files of flat pieces of
tensors, `state.json` (counters, stream position, ...), `manifest.json` (sha256 of every file, and
where each tensor's pieces lie) and, written last, `COMMITTED` (sha256 of the manifest). A folder
without it does not exist for readers. Every rank may write the pieces it owns; reading puts whole
tensors together, whatever the number of writers was.
"""

import contextlib
import errno
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from distgan import storage
from distgan.errors import StorageError, TooLargeError, UserError, for_user
from distgan.strict_json import parse_object

COMMITTED, MANIFEST, STATE = "COMMITTED", "manifest.json", "state.json"
STEP_PREFIX, DAMAGED_PREFIX = "step_", "damaged_"
Json = dict[str, Any]
_DIGEST_BYTES = 1000  # more than any
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_REGULAR_FILE = (errno.EINVAL, errno.ELOOP)


class DamagedCheckpointError(UserError):
    """A committed checkpoint whose bytes are not those that were committed."""


_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""In the checkpoint's own folder: a checkpoint may come from somebody else."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _File(_Strict):
    bytes: NonNegativeInt
    sha256: str


class _Piece(_Strict):
    """Where a contiguous piece of a flattened tensor lies."""

    file: _FileName
    start: NonNegativeInt
    count: NonNegativeInt
    shape: tuple[NonNegativeInt, ...]
    """Of the whole tensor."""


class _Manifest(_Strict):
    """Of the files of a checkpoint and the pieces in them."""

    version: Literal[1]
    files: dict[_FileName, _File]
    tensors: dict[str, Annotated[tuple[_Piece, ...], Field(min_length=1)]]


@dataclass(frozen=True)
class Fragment:
    """A contiguous piece of a flattened tensor."""

    name: str
    """Of the whole tensor, such as `generator/levels.0.blocks.0.time.weight`."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    """The piece's first element in the flattened tensor."""
    values: Tensor
    """The piece, flat."""


@dataclass(frozen=True)
class Checkpoint:
    step: int
    folder: str
    state: Json
    tensors: dict[str, Tensor]
    digest: str
    """Of its manifest, and so of all that is in it."""


def whole(tensors: Mapping[str, Tensor]) -> list[Fragment]:
    """Each tensor, copied, as one piece: what a process that owns everything writes."""
    return [
        Fragment(name, tuple(tensor.shape), 0, tensor.detach().to("cpu", copy=True).reshape(-1))
        for name, tensor in tensors.items()
    ]


def checkpoint_folder(run_dir: str, step: int) -> str:
    return _folder(run_dir, STEP_PREFIX, step)


def _folder(run_dir: str, prefix: str, step: int) -> str:
    return storage.join(run_dir, "checkpoints", f"{prefix}{step:08d}")


def write_fragments(folder: str, writer: str, fragments: Sequence[Fragment]) -> Json:
    """Writes one writer's pieces; returns its part of the manifest.

    Raises:
        OSError: the file could not be written (nothing of it stays).
    """
    file = f"{writer}.safetensors"
    pieces: Json = {}
    for fragment in fragments:
        entry = {"shape": list(fragment.shape), "start": fragment.start}
        pieces[fragment.name] = entry | {"count": fragment.values.numel(), "file": file}
    data = save_safetensors({f.name: f.values.contiguous() for f in fragments})
    return {"files": {file: _write(folder, file, data)}, "pieces": pieces}


def commit(folder: str, parts: Sequence[Json], state: Json) -> None:
    """Makes the written fragments a checkpoint: state, manifest, and the mark, in this order.

    Raises:
        UserError: another process has committed this step, or is about to, or has cleared away what
            was written here.
    """
    mark = storage.join(folder, COMMITTED)
    try:
        with storage.creating(mark) as create:
            state_bytes = _encode(state)
            files = {STATE: _write(folder, STATE, state_bytes)}
            tensors: dict[str, list[Json]] = {}
            for part in parts:
                files |= part["files"]
                for name, piece in part["pieces"].items():
                    tensors.setdefault(name, []).append(piece)
            manifest = _encode({"version": 1, "files": files, "tensors": tensors})
            storage.write_bytes(storage.join(folder, MANIFEST), manifest)
            create(_digest(manifest).encode())
    except FileExistsError as error:
        raise _written_by_another(folder) from error
    # Another process may have cleared the folder when it started; now that it is marked, none does.
    if not _are_there(folder, files, {STATE: state_bytes, MANIFEST: manifest}):
        storage.remove(mark)
        raise _written_by_another(folder)


def _are_there(folder: str, files: Mapping[str, Json], contents: Mapping[str, bytes]) -> bool:
    """Whether all of these files are, and the small ones, whose names others use, as written."""
    if not files.keys() | contents.keys() <= set(storage.list_names(folder)):
        return False
    try:
        return all(_digest(_read(folder, name)) == _digest(data) for name, data in contents.items())
    except DamagedCheckpointError:  # it went in between
        return False


def refuse_if_committed(folder: str) -> None:
    """Raises `UserError` if it is, by another process then: a start sets aside what lies ahead."""
    if storage.exists(storage.join(folder, COMMITTED)):
        raise _written_by_another(folder)


def _written_by_another(folder: str) -> UserError:
    return UserError(
        f"another process has committed the checkpoint {folder}, or is about to: two runs are "
        "writing to one run.dir; end one of them, and give each run a run.dir of its own"
    )


@contextlib.contextmanager
def writing(folder: str) -> Iterator[None]:
    """For writing to a checkpoint's folder inside.

    Raises:
        UserError: the disk is full, or the folder can't be written. What was half-written is
            removed, and earlier checkpoints are untouched.
        StorageError: the disk fails in another way, or object storage for too long. What was
            half-written there stays uncommitted until the next start clears it away.
    """
    try:
        yield
    except OSError as error:
        if not storage.exists(storage.join(folder, COMMITTED)):  # or it is another's, and whole
            storage.remove_tree(folder)
        problem = f"can't write the checkpoint {folder}: {error.strerror or error}"
        if for_user(error) is not None:
            raise UserError(
                f"{problem}; the one before is untouched: make room (or lower checkpoint.keep) and "
                "run the same command again"
            ) from error
        raise StorageError(
            f"{problem}; the one before is untouched: the same command goes on from it"
        ) from error


def drop_old(run_dir: str, keep: int) -> None:
    """Removes all committed checkpoints but the newest `keep`."""
    for old in committed_steps(run_dir)[:-keep]:
        _remove(checkpoint_folder(run_dir, old))


def committed_steps(run_dir: str) -> list[int]:
    """Steps of all committed checkpoints, oldest first."""
    return [step for step in _steps(run_dir) if _is_committed(run_dir, step)]


def load_newest(run_dir: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest committed checkpoint that is whole, and a message for each damaged one passed by.

    Raises:
        UserError: there are committed checkpoints, but every one is damaged; or one can't be read.
        StorageError: storage fails.
    """
    problems: list[str] = []
    for step in reversed(committed_steps(run_dir)):
        try:
            return read_checkpoint(checkpoint_folder(run_dir, step), step), problems
        except DamagedCheckpointError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            f"every checkpoint in {run_dir} is damaged: {'; '.join(problems)}; "
            "start again in a new run folder"
        )
    return None, []


def set_aside_after(run_dir: str, step: int) -> None:
    """Clears the way past `step`, the newest that is whole: damaged ones are renamed.

    What is half-written goes; and so does, also before `step`, what was half-removed as old.
    """
    for other in _steps(run_dir):
        folder = checkpoint_folder(run_dir, other)
        if not _is_committed(run_dir, other):
            storage.remove_tree(folder)
        elif other > step:
            storage.rename(folder, _folder(run_dir, DAMAGED_PREFIX, other))


def read_checkpoint(folder: str, step: int) -> Checkpoint:
    """Checks every digest before any tensor is used, then puts the pieces together.

    Raises:
        DamagedCheckpointError: a file is missing, its bytes are not those committed, or what was
            committed is no checkpoint.
        UserError: this user may not read a file.
        StorageError: the disk, or object storage, fails.
    """
    committed = _read(folder, COMMITTED, max_bytes=_DIGEST_BYTES).decode(errors="replace").strip()
    manifest_bytes = _read(folder, MANIFEST, committed)
    if _digest(manifest_bytes) != committed:
        raise DamagedCheckpointError(f"{folder}/{MANIFEST} is not the one that was committed")
    manifest = _parse_manifest(folder, manifest_bytes)
    contents: dict[str, bytes] = {}
    for file, entry in manifest.files.items():
        contents[file] = _read(folder, file, entry.sha256, entry.bytes)
        if _digest(contents[file]) != entry.sha256:
            raise DamagedCheckpointError(f"{folder}/{file} is damaged (its sha256 differs)")
    try:
        state = parse_object(contents.pop(STATE, b""))
    except ValueError as error:
        raise DamagedCheckpointError(f"{folder}/{STATE}: {error}") from error
    loaded = {file: parse_tensors(f"{folder}/{file}", data) for file, data in contents.items()}
    tensors = {
        name: _assemble(folder, name, pieces, loaded) for name, pieces in manifest.tensors.items()
    }
    return Checkpoint(step, folder, state, tensors, committed)


def parse_tensors(place: str, data: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file; nothing in it is ever unpickled.

    Raises:
        DamagedCheckpointError: it is something else. `place` names it there.
    """
    try:
        return load_safetensors(data)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedCheckpointError(f"{place} is no safetensors file: {error}") from error


def _parse_manifest(folder: str, data: bytes) -> _Manifest:
    try:
        return _Manifest.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part)[:80] for part in problem["loc"])
        raise DamagedCheckpointError(
            f"{folder}/{MANIFEST} is no manifest of this version ({where}: {problem['msg']})"
        ) from error


def _assemble(
    folder: str, name: str, pieces: Sequence[_Piece], loaded: Mapping[str, Mapping[str, Tensor]]
) -> Tensor:
    """One whole tensor. No piece is used twice: a small file must not unfold to a huge tensor."""
    ordered = sorted(pieces, key=lambda piece: (piece.start, piece.count))
    shape, values = ordered[0].shape, []
    position = 0
    for piece in ordered:
        if piece.start != position:
            raise DamagedCheckpointError(f"{folder}: a piece of {name} is missing at {position}")
        part = loaded.get(piece.file, {}).get(name)
        if part is None or part.shape != (piece.count,) or piece.shape != shape:
            raise DamagedCheckpointError(f"{folder}: {piece.file} holds no such piece of {name}")
        values.append(part)
        position += piece.count
    if position != math.prod(shape):
        raise DamagedCheckpointError(f"{folder}: a piece of {name} is missing at {position}")
    if len({piece.file for piece in ordered}) != len(ordered) or len({v.dtype for v in values}) > 1:
        raise DamagedCheckpointError(f"{folder}: the pieces of {name} do not fit together")
    return torch.cat(values).reshape(shape)


def _remove(folder: str) -> None:
    """The mark goes first: half-removed must not look committed."""
    try:
        storage.remove(storage.join(folder, COMMITTED))
        storage.remove_tree(folder)
    except OSError as error:
        kind = UserError if for_user(error) else StorageError
        raise kind(
            f"can't remove the old checkpoint {folder}: {error.strerror or error}; remove it by "
            "hand and run the same command again"
        ) from error


def _steps(run_dir: str) -> list[int]:
    names = storage.list_names(storage.join(run_dir, "checkpoints"))
    numbers = [n.removeprefix(STEP_PREFIX) for n in names if n.startswith(STEP_PREFIX)]
    return sorted(int(number) for number in numbers if number.isdigit())


def _is_committed(run_dir: str, step: int) -> bool:
    return storage.exists(storage.join(checkpoint_folder(run_dir, step), COMMITTED))


def _write(folder: str, file: str, data: bytes) -> Json:
    storage.write_bytes(storage.join(folder, file), data)
    return {"bytes": len(data), "sha256": _digest(data)}


def _read(folder: str, file: str, sha256: str = "", max_bytes: int = storage.MOST_BYTES) -> bytes:
    """`sha256` lets storage read again what the wire damaged; callers check it all the same."""
    is_right = (lambda data: _digest(data) == sha256) if sha256 else None
    try:
        path = storage.join(folder, file)
        return storage.read_bytes(path, is_right=is_right, max_bytes=max_bytes)
    except TooLargeError as error:
        raise DamagedCheckpointError(f"{error}: it is damaged") from error
    except OSError as error:
        if isinstance(error, _NO_FILE) or error.errno in _NO_REGULAR_FILE:
            raise DamagedCheckpointError(f"{folder}/{file} can't be read: {error}") from error
        # It may pass: what is sound must not be set aside for it.
        mended = for_user(error)
        raise mended or StorageError(
            f"{folder}/{file} can't be read: {error.strerror or error}; run the same command "
            f"again, and if it comes again, move {folder} away: the run goes on from the one before"
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _encode(tree: Json) -> bytes:
    return json.dumps(tree, indent=1, sort_keys=True, allow_nan=False).encode()
