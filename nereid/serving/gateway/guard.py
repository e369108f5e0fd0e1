"""Before any route: the API key, its limits, and the size of the body, announced or not; knows no route."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nereid.serving.gateway.errors import RETRY_SECONDS, WEBUI_FOLDER, ApiError
from nereid.serving.gateway.keys import Caller, Keys, RateLimitError

log = logging.getLogger("nereid.gateway")

OPEN_PATHS = frozenset({"/health", "/metrics", "/version"})
"""Whoever watches the server reads these without a key."""
PICTURES_FOLDER = "/pictures/"
"""Whoever was told a picture's address reads it without a key: nobody can guess one."""
WEBUI_QUEUE = "/queue/status"
"""Asked by front ends of AUTOMATIC1111's API, too."""
_REFRESHED = ("checkpoints", "vae", "loras", "embeddings")
REFRESH_PATHS = tuple(f"{WEBUI_FOLDER}v1/refresh-{name}" for name in _REFRESHED)
FREE_PATHS = frozenset({f"{WEBUI_FOLDER}v1/interrupt", f"{WEBUI_FOLDER}v1/skip", f"{WEBUI_FOLDER}v1/options", *REFRESH_PATHS})
"""Asked without work for a model, and beside a request that runs: they do not count among a key's requests."""
KEY_NAME = "key"
"""In a request's state: the name of the key that it came with."""


Headers = Mapping[bytes, bytes]


def takes_passwords(path: str) -> bool:
    """Front ends of AUTOMATIC1111's API know no keys, but a user's name and password: the password is the key."""
    return path.startswith(WEBUI_FOLDER) or path == WEBUI_QUEUE


def _no_caller(path: str) -> ApiError:
    """With the challenge (RFC 9110, 11.6.1) after which some clients send what they have."""
    challenge = 'Basic realm="nereid", charset="UTF-8"' if takes_passwords(path) else 'Bearer realm="nereid"'
    sentence = "the API key is missing or wrong"
    headers = {"WWW-Authenticate": challenge}
    return ApiError(401, sentence, "authentication_error", code="invalid_api_key", headers=headers)


def asked_by(state: Mapping[str, Any]) -> str:
    """A request in words for the log: its id, and its key's name where it has one."""
    return f"{state['request_id']} of key {state[KEY_NAME]}" if KEY_NAME in state else str(state["request_id"])


def owner_of(request: Request) -> str:
    """The name of the key that a request came with; all share "" where there is none."""
    return str(request.scope["state"].get(KEY_NAME, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """How many bytes a body may have: `usual`, or what is said of some paths.

    Bodies with pictures are held in memory until their requests are done; together they may have `pictures_together`.
    """

    usual: int
    file: int = 0
    file_paths: frozenset[str] = frozenset()
    picture: int = 0
    picture_paths: frozenset[str] = frozenset()
    pictures_together: int = 0

    def most_of(self, path: str) -> int:
        return self.file if path in self.file_paths else self.picture if path in self.picture_paths else self.usual


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, keys: Keys, bodies: Bodies) -> None:
        self._app, self._keys, self._bodies = app, keys, bodies
        self._held = 0
        """Bytes of bodies with pictures whose requests are not done: they are in memory until then."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        path: str = scope["path"]
        if not self._keys.callers or path in OPEN_PATHS or path.startswith(PICTURES_FOLDER):
            await self._sized(scope, headers, receive, send)
            return
        caller = self._keys.caller(headers.get(b"authorization", b""), by_password=takes_passwords(path))
        if caller is None:
            await _no_caller(path).response()(scope, receive, send)
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
        pictures = scope["path"] in self._bodies.picture_paths
        most = self._bodies.most_of(scope["path"])
        if not length.isdigit() or int(length) > most:
            await _too_large(most).response()(scope, receive, send)
            return
        seen, answered = 0, False
        refusal: ApiError | None = None

        async def counted() -> Message:
            nonlocal seen, refusal
            message = await receive()
            size = len(message.get("body", b""))
            seen += size
            self._held += size if pictures else 0
            if seen > most:
                refusal = _too_large(most)
            elif pictures and self._held > self._bodies.pictures_together:
                refusal = _BUSY
            return message if refusal is None else {"type": "http.request", "body": b"", "more_body": False}

        async def watched(message: Message) -> None:
            nonlocal answered
            if refusal is not None and not answered:
                return  # whatever the route made of half a body
            answered = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        finally:
            self._held -= seen if pictures else 0
        if refusal is not None and not answered:
            await refusal.response()(scope, receive, send)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes")


_BUSY = ApiError(
    503,
    "too many pictures are being sent; try again soon",
    "service_unavailable_error",
    code="queue_full",
    headers={"Retry-After": str(RETRY_SECONDS)},
)
