"""Secrets that must appear nowhere, and a watch over programs that are given them."""

import base64
import contextlib
import os
import secrets
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from tests.process_view import Listener, arguments_of, listeners, processes_with

_MARK = "DISTGAN_CANARY_MARK"


def new_secrets() -> dict[str, str]:
    """Drawn anew: this file, too, is copied where jobs run. Most have signs that URLs change."""

    def value() -> str:
        return f"{secrets.token_hex(8)}+/=&{secrets.token_hex(8)}"

    return {
        "AWS key id": f"AKIA{secrets.token_hex(8).upper()}",
        "AWS secret": value(),
        "AWS session token": value(),
        "profile's key id": f"AKIA{secrets.token_hex(8).upper()}",
        "profile's secret": value(),
        "URL password": secrets.token_hex(12),
    }


def spellings(secret: str) -> set[bytes]:
    """As it is, in base64 at each of the three places in its groups, in a URL, and in hex."""
    data = secret.encode()
    found = {data, urllib.parse.quote(secret, safe="").encode(), data.hex().encode()}
    found.add(urllib.parse.quote_plus(secret).encode())
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data)
        # What its neighbours would change is left out.
        sure = whole[4 if before else 0 : -4]
        found |= {sure, sure.replace(b"+", b"-").replace(b"/", b"_")}
    return found


class Watch:
    """Looks at the arguments and ports of marked processes, and at temporary files, while they
    live. A context manager."""

    def __init__(self, mark: str, canaries: Mapping[str, str], folders: Iterable[Path]) -> None:
        self.mark, self.folders = mark, tuple(folders)
        self.spellings = {name: spellings(secret) for name, secret in canaries.items()}
        self.hits: set[str] = set()
        self.processes: set[int] = set()
        self.listeners: set[Listener] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def variable(self) -> dict[str, str]:
        """Marks a program and all that it starts."""
        return {_MARK: self.mark}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def look_into(self, where: str, data: bytes) -> None:
        for name, found in self.spellings.items():
            if any(spelling in data for spelling in found):
                self.hits.add(f"{name} in {where}")

    def look_into_files(self, *folders: Path, aside: Iterable[Path] = ()) -> int:
        """Returns how many there were."""
        count = 0
        for path in _files(folders, frozenset(aside)):
            with contextlib.suppress(OSError):  # gone
                self.look_into(str(path), path.read_bytes())
                self.look_into(f"the name {path}", str(path).encode())
                count += 1
        return count

    def _watch(self) -> None:
        while not self._ended.wait(0.3):
            pids = processes_with(_MARK, self.mark)
            for pid in pids:
                self.look_into(f"the arguments of process {pid}", arguments_of(pid))
            self.processes.update(pids)
            self.listeners.update(listeners(pids))
            self.look_into_files(*self.folders)


def _files(folders: Iterable[Path], aside: frozenset[Path]) -> Iterator[Path]:
    for place in folders:
        for folder, _, names in os.walk(place):  # which passes by what is gone meanwhile
            for path in (Path(folder, name) for name in names):
                with contextlib.suppress(OSError):
                    if path.is_file() and not path.is_symlink() and path not in aside:
                        yield path
