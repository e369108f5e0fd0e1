"""Errors in OpenAI's form: one JSON object with message, type, param and code; of a request it knows the path.

Front ends of AUTOMATIC1111's API show what stands under `detail`: below its folder the sentence is there, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from nereid_client.errors import (
    CancelledError,
    ContextLengthError,
    DeadlineExceededError,
    InvalidRequestError,
    NereidError,
    QueueFullError,
    UnavailableError,
)

RETRY_SECONDS = 1
"""What a caller that was refused for now is asked to wait."""
_MOST_NAME, _MOST_SENTENCE = 200, 2000
"""Characters that are told of a field's name, which its caller may have made up, and of a sentence."""
WEBUI_FOLDER = "/sdapi/"
"""Where front ends of AUTOMATIC1111's API ask."""


@dataclass(slots=True)
class ApiError(Exception):
    """An answer other than 200."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """All of it can be sent: what is no Unicode in a name that was sent is shown escaped, and a long one is cut."""
        message, param = self.message, self.param
        if param is not None and len(param) > _MOST_NAME:
            param = f"{param[:_MOST_NAME]}..."
            message = message.replace(str(self.param), param, 1)
        if len(message) > _MOST_SENTENCE:
            message = f"{message[:_MOST_SENTENCE]}..."
        return {
            "error": {
                "message": _sendable(message),
                "type": self.type,
                "param": None if param is None else _sendable(param),
                "code": self.code,
            }
        }

    def body_at(self, path: str) -> dict[str, Any]:
        """What a caller of this path gets."""
        body = self.body()
        return {**body, "detail": body["error"]["message"]} if path.startswith(WEBUI_FOLDER) else body

    def response(self) -> JSONResponse:
        return _Refusal(self)


class _Refusal(JSONResponse):
    """An error in the form of the path that it is sent to."""

    def __init__(self, error: ApiError) -> None:
        self._error = error
        super().__init__(error.body(), error.status, dict(error.headers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = self.render(self._error.body_at(scope["path"]))
        self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def _sendable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def caller_gone() -> ApiError:
    """For the log and the metrics; nobody reads it."""
    return ApiError(499, "the caller went away", "cancelled_error")


def internal_error(request_id: str) -> ApiError:
    """What nobody foresaw; the log has it under this id."""
    return ApiError(500, f"internal error; the gateway's log has it as request {request_id}", "server_error")


_STATUS: tuple[tuple[type[NereidError], int, str, str | None], ...] = (
    (ContextLengthError, 400, "invalid_request_error", "context_length_exceeded"),
    (InvalidRequestError, 400, "invalid_request_error", None),
    (QueueFullError, 503, "service_unavailable_error", "queue_full"),
    (UnavailableError, 503, "service_unavailable_error", None),
    (DeadlineExceededError, 504, "timeout_error", None),
    (CancelledError, 499, "cancelled_error", None),
)


def from_nereid(error: NereidError, names: Mapping[str, str] | None = None) -> ApiError:
    """What the server refused, with the field it named as `param`; `names` are the caller's names of the server's fields.

    The code of a context that is too long stands in the sentence, too: openai-python shows callers the sentence alone, in which
    LangChain looks for the code.
    """
    message, param = renamed(str(error), error.field, names or {})
    for kind, status, name, code in _STATUS:
        if isinstance(error, kind):
            headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}
            message = f"{message} ({code})" if kind is ContextLengthError else message
            return ApiError(status, message, name, param if status == 400 else None, code, headers)
    return ApiError(500, message, "server_error")


def renamed(message: str, field: str | None, names: Mapping[str, str]) -> tuple[str, str | None]:
    """A sentence and its field in the caller's own names; a member's name stays behind its object's."""
    if field is None:
        return message, None
    known = next((name for name in (field, field.partition(".")[0]) if name in names), None)
    if known is None:
        return message, field
    head, colon, rest = message.partition(":")
    return re.sub(rf"\b{re.escape(known)}\b", names[known], head) + colon + rest, names[known] + field.removeprefix(known)
