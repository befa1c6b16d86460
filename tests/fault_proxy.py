"""A proxy between client and object store that makes faults on command, over real connections.

One request a connection: what the client sends is passed on, and so is the answer, unless a fault
is due. Faults that look at requests never touch the bytes of signed ones on their way in.
"""

import contextlib
import random
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

ANSWERS = {
    "slow_down": (503, "SlowDown"),
    "unavailable": (503, "ServiceUnavailable"),
    "internal": (500, "InternalError"),
    "denied": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"),
}
CUTS = ("reset", "stall", "half_body", "flip")
FAULTS = (*ANSWERS, *CUTS)


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    head: bytes
    body: bytes

    @property
    def reads_object(self) -> bool:
        """Whether the answer's body is an object's own bytes."""
        key = self.target.partition("?")[0].strip("/")
        return self.method == "GET" and "list-type" not in self.target and "/" in key


Chooser = Callable[[int, Request], str]
"""The fault for a request, by its number since the proxy's start; empty for none."""


@dataclass
class FaultProxy:
    """Start it as a context; `faults` says what goes wrong, and may change at any time."""

    upstream: int
    """Port of the real server."""
    faults: Chooser = lambda number, request: ""
    requests: list[Request] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    """The faults so far."""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._random = random.Random(0)
        self.port = 0
        self._listen()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._stop_listening()

    def _listen(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), _handler_of(self))
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def _stop_listening(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextmanager
    def out_of_reach(self, *, refusing: bool) -> Iterator[None]:
        """New connections are refused within, as by a server that is down, or are not answered at
        all, as by a host that is down."""
        self._stop_listening()
        with contextlib.ExitStack() as stack:
            if not refusing:
                silent = stack.enter_context(socket.socket())
                silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                silent.bind(("127.0.0.1", self.port))
                silent.listen(0)
                # The kernel takes one connection that nobody accepts; it leaves others unanswered.
                stack.enter_context(socket.create_connection(("127.0.0.1", self.port)))
            yield
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def failing(self, faults: Chooser) -> Iterator[None]:
        """Faults within the context only."""
        before, self.faults = self.faults, faults
        try:
            yield
        finally:
            self.faults = before

    def serve(self, client: socket.socket) -> None:
        """Handles one connection."""
        client.settimeout(60)
        head = _read_head(client)
        if not head:
            return
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ", 2)
        request = Request(method, target, head, b"")
        with self._lock:
            fault = self.faults(len(self.requests), request)
            self.requests.append(request)
            if fault:
                self.made.append(fault)
        if fault == "stall":  # not even the body is read
            self._closed.wait(60)
            return
        if fault == "reset" and self._random.random() < 0.5:
            _reset(client)
            return
        if b"100-continue" in head.lower():
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _read_body(client, head)
        if fault in ANSWERS:
            client.sendall(_error(*ANSWERS[fault], with_body=method != "HEAD"))
            return
        self._pass_on(client, request, body, fault)

    def _pass_on(self, client: socket.socket, request: Request, body: bytes, fault: str) -> None:
        with socket.create_connection(("127.0.0.1", self.upstream), timeout=60) as server:
            server.sendall(_one_request(request.head) + body)
            answer = _read_all(server)
        head, _, content = answer.partition(b"\r\n\r\n")
        if fault == "flip" and request.reads_object and content and b" 20" in head[:14]:
            place = self._random.randrange(len(content))
            content = bytearray(content)
            content[place] ^= 1 << self._random.randrange(8)
        elif fault == "half_body" and content:
            content = content[: len(content) // 2]
        elif fault in ("reset", "half_body"):  # done, but the client never hears of it
            _reset(client)
            return
        client.sendall(head + b"\r\n\r\n" + content)


def always(*faults: str, probability: float = 1.0, seed: int = 0) -> Chooser:
    """These faults in turn, on every request or with a probability."""
    rng = random.Random(seed)

    def choose(number: int, request: Request) -> str:
        return faults[number % len(faults)] if rng.random() < probability else ""

    return choose


def for_seconds(seconds: float, chooser: Chooser) -> Chooser:
    """Another chooser's faults from the first request on, until so many seconds later."""
    started: list[float] = []

    def choose(number: int, request: Request) -> str:
        started.append(time.monotonic())
        return chooser(number, request) if started[-1] - started[0] < seconds else ""

    return choose


def writes_denied(number: int, request: Request) -> str:
    """A bucket that is read-only for the client."""
    return "denied" if request.method in ("PUT", "POST", "DELETE") else ""


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def _handler_of(proxy: FaultProxy) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, TimeoutError):  # the client gave up first
                proxy.serve(self.request)

    return Handler


def _read_head(client: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        byte = client.recv(1)  # not one byte of the body: it may never be read
        if not byte:
            return b""
        head += byte
    return head


def _header(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def _read_body(client: socket.socket, head: bytes) -> bytes:
    if b"chunked" in _header(head, b"transfer-encoding").lower():
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += client.recv(1 << 16)
        return body
    length = int(_header(head, b"content-length") or 0)
    parts, missing = [], length
    while missing:
        parts.append(client.recv(min(missing, 1 << 20)))
        if not parts[-1]:
            raise ConnectionError("the client left")
        missing -= len(parts[-1])
    return b"".join(parts)


def _one_request(head: bytes) -> bytes:
    """The same head, but asking the server to close the connection after its answer."""
    lines = [
        line
        for line in head.rstrip(b"\r\n").split(b"\r\n")
        if not line.lower().startswith((b"connection:", b"expect:"))
    ]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def _read_all(server: socket.socket) -> bytes:
    parts = []
    while data := server.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def _reset(client: socket.socket) -> None:
    """Closes with a TCP reset instead of an orderly end."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def _error(status: int, code: str, *, with_body: bool) -> bytes:
    body = (
        f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>made by a test</Message></Error>'
    ).encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body) if with_body else 0}\r\n\r\n"
    return head.encode() + (body if with_body else b"")
