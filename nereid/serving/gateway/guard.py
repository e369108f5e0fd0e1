"""Before any route: the API key, its limits, and the size of the body, announced or not; knows no route."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.keys import Caller, Keys, RateLimitError

log = logging.getLogger("nereid.gateway")

OPEN_PATHS = frozenset({"/health", "/metrics", "/version"})
"""Whoever watches the server reads these without a key."""
FILES_PATH = "/v1/files"
KEY_NAME = "key"
"""In a request's state: the name of the key that it came with."""


Headers = Mapping[bytes, bytes]


def asked_by(state: Mapping[str, Any]) -> str:
    """A request in words for the log: its id, and its key's name where it has one."""
    return f"{state['request_id']} of key {state[KEY_NAME]}" if KEY_NAME in state else str(state["request_id"])


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, keys: Keys, max_body_bytes: int, max_file_bytes: int | None = None) -> None:
        """`max_file_bytes` is for bodies that bring a file, where files are taken."""
        self._app, self._keys = app, keys
        self._most_bytes, self._most_file_bytes = max_body_bytes, max_file_bytes or max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._keys.callers or scope["path"] in OPEN_PATHS:
            await self._sized(scope, headers, receive, send)
            return
        caller = self._keys.caller(headers.get(b"authorization", b""))
        if caller is None:
            refusal = ApiError(401, "the API key is missing or wrong", "authentication_error", code="invalid_api_key")
            await refusal.response()(scope, receive, send)
            return
        scope["state"][KEY_NAME] = caller.name
        if scope["method"] != "POST":  # lists of models cost nothing
            await self._sized(scope, headers, receive, send)
            return
        await self._limited(caller, scope, headers, receive, send)

    async def _limited(self, caller: Caller, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in caller.headers().items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            with caller.asking():
                await self._sized(scope, headers, receive, told)
        except RateLimitError as error:
            log.info("request %s: %s", scope["state"]["request_id"], error)
            refusal = ApiError(
                429, str(error), "rate_limit_error", code="rate_limit_exceeded", headers={"Retry-After": str(error.seconds)}
            )
            await refusal.response()(scope, receive, told)

    async def _sized(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        length = headers.get(b"content-length", b"0")
        most = self._most_file_bytes if scope["path"] == FILES_PATH else self._most_bytes
        if not length.isdigit() or int(length) > most:
            await self._refuse_size(most, scope, receive, send)
            return
        seen, too_large, answered = 0, False, False

        async def counted() -> Message:
            nonlocal seen, too_large
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                too_large = True
                return {"type": "http.request", "body": b"", "more_body": False}
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            if too_large and not answered:
                return  # whatever the route made of half a body
            answered = True
            await send(message)

        await self._app(scope, counted, watched)
        if too_large and not answered:
            await self._refuse_size(most, scope, receive, send)

    async def _refuse_size(self, most: int, scope: Scope, receive: Receive, send: Send) -> None:
        await ApiError(413, f"the body is larger than {most} bytes").response()(scope, receive, send)
