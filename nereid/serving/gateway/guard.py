"""Before any route: the API key, its limits, and the size of the body, announced or not; knows no route."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.keys import Caller, Keys, RateLimitError

log = logging.getLogger("nereid.gateway")

OPEN_PATHS = frozenset({"/health", "/metrics", "/version"})
"""Whoever watches the server reads these without a key."""
PICTURES_FOLDER = "/pictures/"
"""Whoever was told a picture's address reads it without a key: nobody can guess one."""
WEBUI_FOLDER = "/sdapi/"
"""Front ends of AUTOMATIC1111's API know no keys, but a user's name and password: the password is the key."""
FREE_PATHS = frozenset({f"{WEBUI_FOLDER}v1/interrupt", f"{WEBUI_FOLDER}v1/options"})
"""Asked without work for a model, and beside a request that runs: they do not count among a key's requests."""
KEY_NAME = "key"
"""In a request's state: the name of the key that it came with."""


Headers = Mapping[bytes, bytes]


def asked_by(state: Mapping[str, Any]) -> str:
    """A request in words for the log: its id, and its key's name where it has one."""
    return f"{state['request_id']} of key {state[KEY_NAME]}" if KEY_NAME in state else str(state["request_id"])


def owner_of(request: Request) -> str:
    """The name of the key that a request came with; all share "" where there is none."""
    return str(request.scope["state"].get(KEY_NAME, ""))


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, keys: Keys, max_body_bytes: int, larger: Mapping[str, int] | None = None) -> None:
        """`larger`: the bytes that a body may have on the paths where files and pictures are sent."""
        self._app, self._keys = app, keys
        self._most_bytes, self._larger = max_body_bytes, larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        path: str = scope["path"]
        if not self._keys.callers or path in OPEN_PATHS or path.startswith(PICTURES_FOLDER):
            await self._sized(scope, headers, receive, send)
            return
        caller = self._keys.caller(headers.get(b"authorization", b""), by_password=path.startswith(WEBUI_FOLDER))
        if caller is None:
            refusal = ApiError(401, "the API key is missing or wrong", "authentication_error", code="invalid_api_key")
            await refusal.response()(scope, receive, send)
            return
        scope["state"][KEY_NAME] = caller.name
        if scope["method"] != "POST" or path in FREE_PATHS:  # lists of models cost nothing
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
        most = self._larger.get(scope["path"], self._most_bytes)
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
