"""An object store to measure against: S3's reads over a local folder, shaped, and faulty if asked.

    python -m benchmarks._object_server FOLDER [--latency-ms 100] [--rate-mb 90] [--faults 0.05]

Each request waits for the latency; then its connection sends no faster than the rate, from the page
cache, without the bytes passing through Python. It prints its port, and ends with its parent.
"""

import argparse
import contextlib
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

FAULTS = ("SlowDown", "InternalError", "reset", "half body", "stall")
_SLICE = 1 << 17
_STATUS = {"SlowDown": 503, "InternalError": 500}


@contextlib.contextmanager
def object_server(
    folder: str, *, latency_ms: float = 0, rate_mb: float = 0, faults: float = 0
) -> Iterator[str]:
    """The URL of a server in a process of its own; buckets are the folder's folders."""
    command = [sys.executable, "-m", "benchmarks._object_server", folder]
    command += ["--latency-ms", str(latency_ms), "--rate-mb", str(rate_mb), "--faults", str(faults)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class Server:
    """Serves each connection in a thread."""

    def __init__(self, folder: str, latency_s: float, rate: float, fault_share: float) -> None:
        self.folder, self.latency_s, self.rate = Path(folder), latency_s, rate
        self.fault_share, self._random = fault_share, random.Random(0)
        self._made = 0
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)

    def serve(self) -> None:
        """Without end."""
        while True:
            client, _ = self.socket.accept()
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError, OSError), client, client.makefile("rb") as lines:
            while self._answer(client, [line.decode() for line in _head(lines)]):
                pass

    def _answer(self, client: socket.socket, head: list[str]) -> bool:
        """Answers one request; whether the connection goes on."""
        if not head:
            return False
        method, target, _ = head[0].split()
        path = self.folder / target.partition("?")[0].strip("/")
        time.sleep(self.latency_s)
        if not path.is_file():
            client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        size = path.stat().st_size
        start, end, status = 0, size, "200 OK"
        for line in head[1:]:
            if line.lower().startswith("range: bytes="):
                first, _, last = line.partition("=")[2].strip().partition("-")
                start, end, status = int(first), min(size, int(last) + 1), "206 Partial Content"
        fault = self._fault() if method == "GET" else ""
        if fault in _STATUS:
            body = f"<Error><Code>{fault}</Code></Error>"
            status = f"{_STATUS[fault]} {fault}\r\nContent-Length: {len(body)}"
            client.sendall(f"HTTP/1.1 {status}\r\n\r\n{body}".encode())
            return True
        if fault == "stall":
            select.select([client], [], [])  # until the client leaves
            return False
        lines = (
            f"HTTP/1.1 {status}", f"Content-Length: {end - start}", f'ETag: "{size}-1"',
            f"Content-Range: bytes {start}-{end - 1}/{size}", "Accept-Ranges: bytes",
            "Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT", "Content-Type: binary/octet-stream",
        )  # fmt: skip
        client.sendall("\r\n".join((*lines, "", "")).encode())
        if method == "GET":
            stop = (start + end) // 2 if fault else end
            self._send(client, path, start, stop)
        if fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not fault

    def _send(self, client: socket.socket, path: Path, start: int, end: int) -> None:
        began, at = time.perf_counter(), start
        with path.open("rb") as file:
            while at < end:
                at += os.sendfile(client.fileno(), file.fileno(), at, min(_SLICE, end - at))
                if self.rate:
                    ahead_s = began + (at - start) / self.rate - time.perf_counter()
                    time.sleep(max(0.0, ahead_s))

    def _fault(self) -> str:
        if self._random.random() >= self.fault_share:
            return ""
        self._made += 1
        return FAULTS[self._made % len(FAULTS)]


def _head(lines: Iterator[bytes]) -> list[bytes]:
    head = []
    for line in lines:
        if not line.strip():
            break
        head.append(line.strip())
    return head


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks._object_server")
    parser.add_argument("folder")
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--rate-mb", type=float, default=0, help="MB/s a connection; 0: unlimited")
    parser.add_argument("--faults", type=float, default=0, help="share of reads that fail")
    args = parser.parse_args()
    server = Server(args.folder, args.latency_ms / 1e3, args.rate_mb * 1e6, args.faults)
    threading.Thread(target=server.serve, daemon=True).start()
    print(server.socket.getsockname()[1], flush=True)
    sys.stdin.read()  # the parent's end closes it


if __name__ == "__main__":
    main()
