"""Errors in OpenAI's form: one JSON object with message, type, param and code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nereid_client.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidRequestError,
    NereidError,
    UnavailableError,
)


@dataclass(slots=True)
class ApiError(Exception):
    """An answer other than 200."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


_STATUS: tuple[tuple[type[NereidError], int, str], ...] = (
    (InvalidRequestError, 400, "invalid_request_error"),
    (UnavailableError, 503, "service_unavailable_error"),
    (DeadlineExceededError, 504, "timeout_error"),
    (CancelledError, 499, "cancelled_error"),
)


def from_nereid(error: NereidError) -> ApiError:
    """What the server refused, with the field it named as `param`."""
    message = str(error)
    for kind, status, name in _STATUS:
        if isinstance(error, kind):
            return ApiError(status, message, name, error.field if status == 400 else None)
    return ApiError(500, message, "server_error")


def from_validation(problem: dict[str, Any]) -> ApiError:
    """pydantic's first problem as one sentence that names the field."""
    parts = [str(part) for part in problem["loc"] if part != "body"]
    field = ".".join(part for part in parts if not part.startswith(("str", "list[", "function-"))) or "body"
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"{field}: this field is not supported", param=field, code="unsupported_parameter")
    if problem["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON")
    shown = repr(problem.get("input"))
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return ApiError(400, f"{field}: {shown} is not allowed: {message[0].lower()}{message[1:]}", param=field)
