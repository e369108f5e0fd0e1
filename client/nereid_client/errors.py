"""What a request to a server can end with.

NereidError
├── InvalidRequestError     a field is not allowed to have its value; trying again will not help
├── UnavailableError        the server cannot take it now; retried with backoff before it is raised
│   ├── LostError           what computed it has died
│   └── ConnectionLostError nobody answers at the address, or the connection broke
├── DeadlineExceededError   the time given to the request ran out
├── CancelledError          it was cancelled from here
├── UnsupportedError        the chosen protocol cannot do this
└── ServerError             anything else that went wrong over there
"""

from __future__ import annotations

from tritonclient.utils import InferenceServerException

from nereid_protocol.errors import ErrorKind, WireError


class NereidError(Exception):
    """Base of all errors of this SDK: the server's sentence, and the request's field that it names, where it names one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidRequestError(NereidError):
    pass


class UnavailableError(NereidError):
    pass


class ConnectionLostError(UnavailableError):
    pass


class LostError(UnavailableError):
    pass


class DeadlineExceededError(NereidError):
    pass


class CancelledError(NereidError):
    pass


class UnsupportedError(NereidError):
    pass


class ServerError(NereidError):
    pass


_BY_STATUS: dict[str, type[NereidError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "400": InvalidRequestError,
    "NOT_FOUND": InvalidRequestError,
    "404": InvalidRequestError,
    "UNAVAILABLE": UnavailableError,
    "503": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "504": DeadlineExceededError,
    "499": CancelledError,
    "CANCELLED": CancelledError,
}
_BY_KIND: dict[ErrorKind, type[NereidError]] = {
    ErrorKind.INVALID: InvalidRequestError,
    ErrorKind.POISONOUS: InvalidRequestError,
    ErrorKind.QUEUE_FULL: UnavailableError,
    ErrorKind.STOPPING: UnavailableError,
    ErrorKind.DEADLINE: DeadlineExceededError,
    ErrorKind.CANCELLED: CancelledError,
    ErrorKind.LOST: LostError,
    ErrorKind.ENGINE: ServerError,
}
_DEAD_WORDS = ("is not healthy",)
"""Triton's own words, which come without a code, for a model whose process has died."""
_CONNECTION_WORDS = ("failed to connect", "connection", "socket", "stream removed", "goaway")


def from_triton(error: InferenceServerException) -> NereidError:
    """The typed error for what tritonclient raised."""
    message = error.message() or str(error)
    status = (error.status() or "").removeprefix("StatusCode.")
    sent = WireError.parse(message)
    if sent is not None:
        return _BY_KIND[sent.kind](sent.sentence, sent.field)
    kind = _BY_STATUS.get(status, ServerError)
    if kind is UnavailableError and any(word in message.lower() for word in _CONNECTION_WORDS):
        kind = ConnectionLostError
    if kind is ServerError and any(words in message.lower() for words in _DEAD_WORDS):
        kind = LostError
    return kind(message)
