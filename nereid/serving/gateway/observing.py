"""Around every request: its id, its numbers, and the last resort for what nobody foresaw; knows no route's work."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import MutableMapping, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nereid.serving.gateway.bodies import IGNORED
from nereid.serving.gateway.errors import internal_error
from nereid.serving.gateway.guard import KEY_NAME, asked_by
from nereid.serving.gateway.metrics import GatewayMetrics
from nereid.serving.gateway.waiting import GONE
from nereid_protocol.request_ids import request_id_of

log = logging.getLogger("nereid.gateway")

REQUEST_ID_HEADER = "x-request-id"
IGNORED_HEADER = "x-nereid-ignored-fields"
"""On an answer: what was sent and ignored, by name."""
_MOST_HEADER = 2000
"""Characters of a list of names."""
_GONE = 499


def _listed(names: Sequence[str]) -> bytes:
    """Names as a header may hold them: printable ASCII, and not too much of it."""
    text = ", ".join(json.dumps(name)[1:-1] for name in names)
    return (text if len(text) <= _MOST_HEADER else f"{text[:_MOST_HEADER]}...").encode("ascii")


class Observed:
    """ASGI middleware around all that works: `scope["state"]["request_id"]` inside, the header `x-request-id` on every answer."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._metrics)
        with self._metrics.in_flight(exchange.route):
            try:
                await self._app(scope, receive, exchange.send)
            except Exception:
                log.exception("request %s: %s %s has failed", asked_by(scope["state"]), scope["method"], exchange.route)
                if exchange.status is None:
                    await internal_error(exchange.request_id).response()(scope, receive, exchange.send)
            finally:
                exchange.end()


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, metrics: GatewayMetrics) -> None:
        sent = dict(scope["headers"]).get(REQUEST_ID_HEADER.encode())
        self.request_id = request_id_of(sent.decode("latin-1") if sent is not None else None)
        self._state: MutableMapping[str, Any] = scope.setdefault("state", {})
        self._state["request_id"] = self.request_id
        self.route = metrics.route_of(scope["method"], scope["path"])
        self.status: int | None = None
        self._begun, self._metrics, self._send, self._streams = time.monotonic(), metrics, send, False

    async def send(self, message: Message) -> None:
        """To the caller; an answer that has begun to be streamed is noted once."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (REQUEST_ID_HEADER.encode(), self.request_id.encode())]
            if names := self._state.get(IGNORED):
                headers.append((IGNORED_HEADER.encode(), _listed(names)))
            self._streams = any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
            message = {**message, "headers": headers}
        elif self._streams:
            self._streams = False
            self._metrics.first_event(self.route, time.monotonic() - self._begun, self.request_id)
        await self._send(message)

    def end(self) -> None:
        status = _GONE if self.status is None or self._state.get(GONE) else self.status
        seconds = time.monotonic() - self._begun
        self._metrics.ended(self.route, status, seconds, self.request_id, self._state.get(KEY_NAME))
