"""What somebody who means harm puts in the place of data: code that leaves a mark when it runs."""

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = b"[" * 200_000 + b"]" * 200_000


class _Payload:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def pickled(mark: Path) -> bytes:
    return pickle.dumps(_Payload(mark))


def torch_saved(mark: Path) -> bytes:
    """What `torch.save` writes: a zip that holds a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(mark))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def npy(header: str, pixels: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + pixels


def npy_of_objects(mark: Path) -> bytes:
    return npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickled(mark))


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Forger:
    """Changes a committed checkpoint as somebody would who knows its format: digests fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())

    @property
    def weights(self) -> str:
        """The name of the file of rank 0."""
        return next(name for name in self.manifest["files"] if name.startswith("rank-00000-"))

    def put(self, name: str, data: bytes) -> None:
        """A file of the checkpoint, known to the manifest."""
        (self.folder / name).write_bytes(data)
        self.know(name, data)

    def know(self, name: str, data: bytes) -> None:
        self.manifest["files"][name] = {"bytes": len(data), "sha256": digest(data)}

    def change_state(self, change: Callable[[dict[str, Any]], None]) -> None:
        state = json.loads((self.folder / "state.json").read_bytes())
        change(state)
        self.put("state.json", json.dumps(state).encode())

    def commit(self, manifest: bytes | None = None) -> None:
        data = json.dumps(self.manifest).encode() if manifest is None else manifest
        (self.folder / "manifest.json").write_bytes(data)
        (self.folder / "COMMITTED").write_text(digest(data))
