"""Who is connected, and how long each may take to ask and to read: limits that hold against strangers. Knows no routes.

uvicorn bounds neither the number of connections nor the time in which a request must arrive. Here a connection has a phase:
HEAD (its request's line and headers are awaited), BODY, ASKED (the request is whole, the answer is due), IDLE (answered,
and kept for a next request). All but ASKED have a deadline, and where there are too many connections, the oldest that is not
ASKED makes room: so however many say nothing, one that asks at once is served.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from nereid.flow.awake_time import AwakeTime
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.limits import Limits

LINGER_SECONDS = 2.0
"""How long the rest of a body is read whose request has been answered already, so that the answer is not lost."""

FREE_CHUNKS = 1000
CHUNK_BYTES = 64
"""What a chunk of a body must hold on average, after the first `FREE_CHUNKS`."""
_LENGTHS = {b"content-length", b"transfer-encoding"}


class Phase(Enum):
    HEAD = auto()
    BODY = auto()
    ASKED = auto()
    IDLE = auto()


class Connection(Protocol):
    """What the bookkeeping asks of a connection."""

    def drop(self) -> None:
        """Close it at once."""

    def expire(self) -> None:
        """Close it since its deadline has passed."""

    def unsent(self) -> int:
        """Bytes that wait for the caller to read."""


@dataclass(slots=True)
class Connections:
    """All connections of one server, and what each is given."""

    limits: Limits
    awake: AwakeTime = field(default_factory=AwakeTime, init=False)
    """Deadlines are in its time: while the gateway stands still nobody is late."""
    _all: set[Connection] = field(default_factory=set, init=False)
    _asking: dict[Connection, float] = field(default_factory=dict, init=False)
    """Deadlines of those that are not ASKED, oldest first."""
    _stalled: dict[Connection, tuple[float, int]] = field(default_factory=dict, init=False)
    """Deadlines of those whose callers do not read, and how much waited when it was set."""

    def __len__(self) -> int:
        return len(self._all)

    def arrive(self, connection: Connection) -> bool:
        """Take it on, in HEAD; False where every connection there may be is busy with a whole request."""
        if len(self._all) >= self.limits.connections:
            oldest = next(iter(self._asking), None)
            if oldest is None:
                return False
            self.leave(oldest)
            oldest.drop()
        self._all.add(connection)
        self._asking[connection] = self.awake.now() + self.limits.head_seconds
        return True

    def leave(self, connection: Connection) -> None:
        self._all.discard(connection)
        self._asking.pop(connection, None)
        self._stalled.pop(connection, None)

    def enter(self, connection: Connection, phase: Phase) -> None:
        """Its deadline by its phase. It keeps its place in the queue of age from HEAD through BODY."""
        if connection not in self._all:
            return
        if phase is not Phase.BODY:
            self._asking.pop(connection, None)
        seconds = {
            Phase.HEAD: self.limits.head_seconds,
            Phase.BODY: self.limits.body_seconds,
            Phase.IDLE: self.limits.idle_seconds,
        }.get(phase)
        if seconds is not None:
            self._asking[connection] = self.awake.now() + seconds

    def linger(self, connection: Connection) -> None:
        """It was answered before its body had come."""
        if connection in self._asking:
            self._asking[connection] = self.awake.now() + LINGER_SECONDS

    def stall(self, connection: Connection) -> None:
        if connection in self._all:
            self._stalled[connection] = (self.awake.now() + self.limits.send_seconds, connection.unsent())

    def flow(self, connection: Connection) -> None:
        self._stalled.pop(connection, None)

    def sweep(self, now: float) -> None:
        """End those whose deadline has passed."""
        for connection in [known for known, deadline in self._asking.items() if deadline < now]:
            self.leave(connection)
            connection.expire()
        for connection, (deadline, waited) in list(self._stalled.items()):
            if deadline >= now:
                continue
            if connection.unsent() <= waited - self.limits.send_bytes:  # slow, but it reads
                self.stall(connection)
            else:
                self.leave(connection)
                connection.drop()


class _Parser(h11.Connection):
    """h11 without bodies in crumbs: a chunk costs the same time however small it is, and all connections share that time."""

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            if {name for name, _ in event.headers} >= _LENGTHS:
                # A proxy may take the other one, and what follows for the next caller's request (RFC 9112, 6.3).
                raise h11.RemoteProtocolError("the body has two lengths")
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._bytes / CHUNK_BYTES:
                raise h11.RemoteProtocolError("the body's chunks are too small")
        return event


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection under those rules; what it refuses itself is JSON in OpenAI's form."""

    def __init__(self, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self.conn = _Parser(h11.SERVER, connections.limits.head_bytes)
        self._connections = connections
        self._phase = Phase.HEAD
        self._has_sent = False

    # --- what asyncio and uvicorn call ---

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self._connections.arrive(self):
            self._refuse(503, "too many connections are busy; try again soon", "service_unavailable_error")

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._has_sent = True
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEAD)
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._enter(Phase.BODY)
        elif state is not h11.IDLE:
            self._enter(Phase.ASKED)
        elif self._phase is not Phase.HEAD:  # a next request is awaited, or has begun already
            self._has_sent = bool(self.conn.trailing_data[0])
            self._enter(Phase.HEAD if self._has_sent else Phase.IDLE)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._phase is Phase.BODY:
            self._connections.linger(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._connections.stall(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._connections.flow(self)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not an HTTP/1.1 request that can be read", "invalid_request_error")

    # --- what the bookkeeping calls ---

    def drop(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True
        self.transport.abort()

    def expire(self) -> None:
        if self._phase is Phase.IDLE or not self._has_sent:
            self.drop()
        else:
            part = "headers" if self._phase is Phase.HEAD else "body"
            self._refuse(408, f"the request's {part} did not arrive in time", "timeout_error")

    def unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def _enter(self, phase: Phase) -> None:
        if phase is not self._phase and not self.transport.is_closing():
            self._phase = phase
            self._connections.enter(self, phase)

    def _refuse(self, status: int, message: str, kind: str) -> None:
        """Answer, where no answer has begun, and close; what the socket does not take at once is not waited for."""
        answered = self.cycle is not None and self.cycle.response_started
        if answered and self.cycle.response_complete:
            answered = self._phase is Phase.BODY  # the rest of its body is awaited; elsewhere a next request has begun
        if not answered:
            body = json.dumps(ApiError(status, message, kind).body()).encode()
            retry = b"Retry-After: 1\r\n" if status == 503 else b""
            head = f"HTTP/1.1 {status} {STATUS_WORDS[status]}\r\nContent-Type: application/json\r\n"
            rest = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self.transport.write(head.encode() + retry + rest.encode() + body)
        self.drop()


STATUS_WORDS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}
