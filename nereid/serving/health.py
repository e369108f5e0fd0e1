"""/ready, /live and /metrics on one thread: few connections, each for a bounded time; knows nothing of what is healthy.

Strangers reach this port, and it shares a process with the supervisor: so there is no thread and no waiting a connection,
the oldest connection makes room for a new one, and no failure of a socket ends anything.
"""

from __future__ import annotations

import contextlib
import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.listening import listen

log = logging.getLogger("nereid.serve")

MAX_CONNECTIONS = 64
MAX_SECONDS = 3.0
"""How long a connection may take to ask and to take its answer."""
MAX_REQUEST_BYTES = 8192

Readiness = Callable[[], tuple[bool, dict[str, Any]]]


@dataclass(slots=True)
class _Connection:
    deadline: float
    received: bytes = b""


@dataclass(slots=True)
class HealthServer:
    """Listens from `start` to `stop`."""

    host: str
    port: int
    readiness: Readiness
    metrics: Callable[[], str] = str
    _listener: socket.socket | None = field(default=None, init=False)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector, init=False)
    _connections: dict[socket.socket, _Connection] = field(default_factory=dict, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Listen; raises ServingError where the port cannot be had."""
        self._listener = listen("--health-port", self.host, self.port, 128)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for connection in list(self._connections):
            self._close(connection)
        if self._listener is not None:
            self._listener.close()
        self._selector.close()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:  # out of descriptors or memory: a moment later there may be some again
                log.exception("the health port has failed; going on")
                self._stopping.wait(0.5)

    def _turn(self) -> None:
        for key, _ in self._selector.select(timeout=0.1):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket):
                self._read(key.fileobj)
        now = time.monotonic()
        for connection in [known for known, state in self._connections.items() if state.deadline < now]:
            self._close(connection)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            self._drop_oldest()  # no descriptors are left: its own are the first to go
            self._stopping.wait(0.05)
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self._drop_oldest()
        connection.setblocking(False)
        self._connections[connection] = _Connection(time.monotonic() + MAX_SECONDS)
        self._selector.register(connection, selectors.EVENT_READ)

    def _drop_oldest(self) -> None:
        if self._connections:
            self._close(next(iter(self._connections)))

    def _read(self, connection: socket.socket) -> None:
        state = self._connections.get(connection)
        if state is None:  # dropped in this turn
            return
        try:
            part = connection.recv(MAX_REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        state.received += part
        whole = b"\r\n\r\n" in state.received
        if whole:
            with contextlib.suppress(OSError):  # an answer of some kilobytes fits into the socket's buffer, or is not wanted
                connection.send(self._answer(state.received.split(b"\r\n", 1)[0]))
                connection.shutdown(socket.SHUT_WR)
        if whole or not part or len(state.received) > MAX_REQUEST_BYTES:
            self._close(connection)

    def _answer(self, line: bytes) -> bytes:
        kind = "application/json"
        method = line.split(b" ")[0]
        match line.split(b" "):
            case [b"GET" | b"HEAD", (b"/ready" | b"/live") as path, *_]:
                ready, details = self.readiness()
                status = "200 OK" if ready or path == b"/live" else "503 Service Unavailable"
                body = json.dumps(details).encode()
            case [b"GET" | b"HEAD", b"/metrics", *_]:
                status, body, kind = "200 OK", self.metrics().encode(), "text/plain; version=0.0.4"
            case [b"GET" | b"HEAD", *_]:
                status, body = "404 Not Found", b'{"error": "there are /ready, /live and /metrics"}'
            case _:
                status, body = "405 Method Not Allowed", b'{"error": "there are only GET and HEAD"}'
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + (b"" if method == b"HEAD" else body)

    def _close(self, connection: socket.socket) -> None:
        self._connections.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection)
        connection.close()
