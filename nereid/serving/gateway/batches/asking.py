"""A batch's request through the gateway's own routes, as if a caller had sent it; knows no batch."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from nereid.serving.gateway.guard import KEY_NAME
from nereid_protocol.request_ids import request_id_of


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer, and the id of its request."""

    status: int
    request_id: str
    body: Any


async def ask(app: ASGIApp, path: str, body: dict[str, Any], owner: str = "") -> Answer:
    """`owner` is the name of the key that the batch came with, "" where there is none. Cancelling this cancels the work."""
    request_id = request_id_of(None)
    sent = json.dumps(body).encode()
    pending = [{"type": "http.request", "body": sent, "more_body": False}]
    status, parts = 500, bytearray()

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await asyncio.Event().wait()  # this caller does not hang up
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(sent)).encode())],
        "client": None,
        "server": None,
        "state": {"request_id": request_id, **({KEY_NAME: owner} if owner else {})},
    }
    await app(scope, receive, send)
    return Answer(status, request_id, json.loads(bytes(parts)))
