"""The errors a request can end with, each with the kind it travels as; knows nothing of Triton itself.

RequestError
├── InvalidRequestError    INVALID_ARG   a field's value is not allowed
│   └── ContextLengthError INVALID_ARG   prompt and answer do not fit into the model's context
├── PoisonousRequestError  INVALID_ARG   what computed it died twice, and it was alone inside
├── QueueFullError         UNAVAILABLE   too many requests wait already
├── DeadlineError          UNAVAILABLE   the request's own time ran out
├── LostError              UNAVAILABLE   what computed it has died
├── CancelledError         CANCELLED     the caller went away
├── StoppingError          UNAVAILABLE   the model is being unloaded
└── EngineError            INTERNAL      a model this one calls has failed
"""

from __future__ import annotations

import re

from nereid_protocol.errors import ErrorKind, Status, WireError

_LONGEST_FIELD = 200
"""Characters of a field in a sentence."""


class RequestError(Exception):
    """One request has failed: a sentence, and the request's field that is to blame, where one is."""

    kind = ErrorKind.ENGINE
    outcome = "error"
    """The label in the metrics."""

    def __init__(self, sentence: str, field: str | None = None) -> None:
        super().__init__(sentence)
        self.field = field

    @property
    def status(self) -> Status:
        return self.kind.status

    def wire(self) -> str:
        """The form in which it crosses Triton, where all of it is Unicode: half of a surrogate pair is shown escaped."""
        sentence = str(self).encode(errors="backslashreplace").decode()
        return str(WireError(sentence, self.kind, self.field))

    @staticmethod
    def of_wire(error: WireError) -> RequestError:
        """The same error on the calling side."""
        return _BY_KIND[error.kind](error.sentence, error.field)


class InvalidRequestError(RequestError):
    """A field of the request is not allowed to have its value."""

    kind = ErrorKind.INVALID
    outcome = "invalid"

    @classmethod
    def of(cls, field: str, value: object, allowed: str) -> InvalidRequestError:
        """The one sentence every refusal is: field, value, what is allowed."""
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        if len(field) > _LONGEST_FIELD:  # a name that the caller made up
            field = field[: _LONGEST_FIELD - 3] + "..."
        # "shape of latents", "characters in prompt": the field is the last word; "width x height" has two and names neither.
        name = field.rpartition(" ")[2]
        named = name if " x " not in field and re.sub("[_.-]", "", name).isalnum() else None
        return cls(f"{field}: {shown} is not allowed; it must be {allowed}", named)


class ContextLengthError(InvalidRequestError):
    """Prompt and answer do not fit into the model's context."""

    kind = ErrorKind.TOO_LONG


class PoisonousRequestError(RequestError):
    kind = ErrorKind.POISONOUS
    outcome = "poisonous"


class QueueFullError(RequestError):
    kind = ErrorKind.QUEUE_FULL
    outcome = "rejected"


class DeadlineError(RequestError):
    kind = ErrorKind.DEADLINE
    outcome = "timeout"


class LostError(RequestError):
    kind = ErrorKind.LOST
    outcome = "lost"


class CancelledError(RequestError):
    kind = ErrorKind.CANCELLED
    outcome = "cancelled"


class StoppingError(RequestError):
    kind = ErrorKind.STOPPING
    outcome = "rejected"


class EngineError(RequestError):
    kind = ErrorKind.ENGINE
    outcome = "error"


_BY_KIND: dict[ErrorKind, type[RequestError]] = {
    ErrorKind.INVALID: InvalidRequestError,
    ErrorKind.TOO_LONG: ContextLengthError,
    ErrorKind.POISONOUS: PoisonousRequestError,
    ErrorKind.QUEUE_FULL: QueueFullError,
    ErrorKind.DEADLINE: DeadlineError,
    ErrorKind.LOST: LostError,
    ErrorKind.CANCELLED: CancelledError,
    ErrorKind.STOPPING: StoppingError,
    ErrorKind.ENGINE: EngineError,
}


def first_line(error: Exception) -> str:
    """What a library's error says first, where it goes on for pages; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
