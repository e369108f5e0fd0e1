"""Before any route: the API key, and the size of the body, announced or not; knows no route."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nereid.serving.gateway.errors import ApiError


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, api_key: str, max_body_bytes: int) -> None:
        self._app, self._key, self._most = app, api_key, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._key and scope["path"].startswith("/v1/") and not self._allowed(headers.get(b"authorization", b"")):
            refusal = ApiError(401, "the API key is missing or wrong", "authentication_error", code="invalid_api_key")
            await refusal.response()(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            await self._refuse_size(scope, receive, send)
            return
        seen, too_large, answered = 0, False, False

        async def counted() -> Message:
            nonlocal seen, too_large
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
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
            await self._refuse_size(scope, receive, send)

    def _allowed(self, header: bytes) -> bool:
        return hmac.compare_digest(header, f"Bearer {self._key}".encode())

    async def _refuse_size(self, scope: Scope, receive: Receive, send: Send) -> None:
        await ApiError(413, f"the body is larger than {self._most} bytes").response()(scope, receive, send)
