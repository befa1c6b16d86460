"""What can be seen of running programs from outside: their processes, arguments and open ports."""

import contextlib
import os
import re
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

_LISTENING = "0A"


class Listener(NamedTuple):
    address: str
    port: int
    program: str
    """The arguments of the process that listens, shortened."""

    @property
    def is_loopback(self) -> bool:
        address = ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback


def processes_with(name: str, value: str) -> list[int]:
    """Processes that have a variable in their environment, and all that they started: some write
    another name for themselves over what shows their environment."""
    wanted = f"{name}={value}".encode()
    found, parents = set(), {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            parents[pid] = int(stat.rpartition(b")")[2].split()[1])
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def lives(pids: Iterable[int]) -> set[tuple[int, int]]:
    """Those that run still, each with its start: its number may be another's one day."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] not in (b"Z", b"X"):
                found.add((pid, int(fields[19])))
    return found


def arguments_of(pid: int) -> bytes:
    """Empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def listeners(pids: list[int]) -> set[Listener]:
    """The TCP ports, of either family, on which these processes take connections."""
    places = _listening_sockets()
    found = set()
    for pid in pids:
        program = arguments_of(pid).replace(b"\0", b" ").decode(errors="replace")[:120]
        for inode in _sockets_of(pid):
            if inode in places:
                found.add(Listener(*places[inode], program))
    return found


def _pids() -> Iterator[int]:
    yield from (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208  # much faster


def _sockets_of(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
                if match:
                    yield match[1]


def _listening_sockets() -> dict[str, tuple[str, int]]:
    """Inode -> (address, port)."""
    sockets = {}
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING:
                address, port = fields[1].split(":")
                sockets[fields[9]] = (_address(address), int(port, 16))
    return sockets


def _address(text: str) -> str:
    """The kernel prints words of 4 bytes in the machine's order."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    data = struct.pack(f"={len(words)}I", *words)
    return str(IPv4Address(data) if len(data) == 4 else IPv6Address(data))
