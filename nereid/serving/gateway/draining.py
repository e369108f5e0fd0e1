"""The end in order: new requests are refused, those inside may finish, and what is left is told so. Knows ASGI and no routes."""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import dataclass, field

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nereid.serving.gateway.errors import ApiError

TELL_SECONDS = 0.5
"""How long a caller may take to read that its request was cut."""


@dataclass(slots=True)
class _Reply:
    """One answer on its way out."""

    send_on: Send
    status: int | None = None
    is_event_stream: bool = False
    is_complete: bool = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kind = next((value for name, value in message.get("headers", []) if name.lower() == b"content-type"), b"")
            self.is_event_stream = kind.startswith(b"text/event-stream")
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True
        await self.send_on(message)


@dataclass(slots=True)
class Drain:
    """What is inside, and whether it is the end."""

    seconds: float = 0.0
    inside: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _deadline: float | None = field(default=None, init=False)
    _cut_at: float | None = field(default=None, init=False)

    @property
    def has_begun(self) -> bool:
        return self._deadline is not None

    @property
    def has_cut(self) -> bool:
        return self._cut_at is not None

    def begin(self) -> None:
        """Refuse what comes from now on; asked again, do not wait for what is inside. Safe in a signal's handler."""
        now = time.monotonic()
        self._deadline = now + self.seconds if self._deadline is None else now

    def is_over(self, now: float) -> bool:
        """Whether nothing is inside any more; cuts what is left at the deadline."""
        if self._deadline is None:
            return False
        if self.inside and now >= self._deadline and self._cut_at is None:
            self._cut_at = now
            for task in list(self.inside):
                task.cancel()
        return not self.inside or (self._cut_at is not None and now >= self._cut_at + 2 * TELL_SECONDS)

    def refusal(self, path: str) -> JSONResponse:
        wait = max(1, math.ceil((self._deadline or 0.0) - time.monotonic()))
        body = {"ready": False, "draining": True} if path == "/health" else _ending().body_at(path)
        return JSONResponse(body, 503, {"Retry-After": str(wait), "Connection": "close"})


class Drained:
    """ASGI middleware: asks `drain` about every request."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        if self._drain.has_begun and scope["path"] != "/metrics":
            await self._drain.refusal(scope["path"])(scope, receive, send)
            return
        reply = _Reply(send)
        self._drain.inside.add(task)
        try:
            await self._app(scope, receive, reply.send)
        except asyncio.CancelledError:
            if not self._drain.has_cut:
                raise
            await self._tell(reply, scope, receive)
        finally:
            self._drain.inside.discard(task)

    async def _tell(self, reply: _Reply, scope: Scope, receive: Receive) -> None:
        """An error in the form that the caller reads: JSON, or a last event of its stream."""
        if reply.is_complete:
            return
        try:
            async with asyncio.timeout(TELL_SECONDS):
                if reply.status is None:
                    await self._drain.refusal(scope["path"])(scope, receive, reply.send_on)
                elif reply.is_event_stream:
                    event = f"data: {json.dumps(_ending().body())}\n\n".encode()
                    await reply.send_on({"type": "http.response.body", "body": event, "more_body": False})
        except TimeoutError:  # it does not read
            pass


def _ending() -> ApiError:
    return ApiError(503, "the server is shutting down; send the request again", "service_unavailable_error", code="shutting_down")
