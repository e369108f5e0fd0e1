"""The errors a request can end with, each with the Triton status it answers with; knows nothing of Triton itself.

RequestError
├── InvalidRequestError    INVALID_ARG   a field's value is not allowed
├── QueueFullError         UNAVAILABLE   too many requests wait already
├── DeadlineError          UNAVAILABLE   the request's own time ran out
├── CancelledError         CANCELLED     the caller went away
├── StoppingError          UNAVAILABLE   the model is being unloaded
└── EngineError            INTERNAL      a model this one calls has failed
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Names of Triton's error codes (TRITONSERVER_ERROR_*)."""

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class RequestError(Exception):
    """One request has failed; `outcome` is its label in the metrics."""

    status = Status.INTERNAL
    outcome = "error"


class InvalidRequestError(RequestError):
    """A field of the request is not allowed to have its value."""

    status = Status.INVALID_ARG
    outcome = "invalid"

    @classmethod
    def of(cls, field: str, value: object, allowed: str) -> InvalidRequestError:
        """The one sentence every refusal is: field, value, what is allowed."""
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return cls(f"{field}: {shown} is not allowed; it must be {allowed}")


class QueueFullError(RequestError):
    status = Status.UNAVAILABLE
    outcome = "rejected"


class DeadlineError(RequestError):
    status = Status.UNAVAILABLE
    outcome = "timeout"


class CancelledError(RequestError):
    status = Status.CANCELLED
    outcome = "cancelled"


class StoppingError(RequestError):
    status = Status.UNAVAILABLE
    outcome = "rejected"


class EngineError(RequestError):
    status = Status.INTERNAL
    outcome = "error"
