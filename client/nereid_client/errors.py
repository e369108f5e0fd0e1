"""What a request to a server can end with.

NereidError
├── InvalidRequestError     a field is not allowed to have its value; trying again will not help
├── UnavailableError        the server cannot take it now; retried with backoff before it is raised
│   └── ConnectionLostError nobody answers at the address, or the connection broke
├── DeadlineExceededError   the time given to the request ran out
├── CancelledError          it was cancelled from here
├── UnsupportedError        the chosen protocol cannot do this
└── ServerError             anything else that went wrong over there
"""

from __future__ import annotations

from tritonclient.utils import InferenceServerException


class NereidError(Exception):
    """Base of all errors of this SDK; the message is the server's sentence."""


class InvalidRequestError(NereidError):
    pass


class UnavailableError(NereidError):
    pass


class ConnectionLostError(UnavailableError):
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
_BY_WORDS: tuple[tuple[str, type[NereidError]], ...] = (
    ("is not allowed; it must be", InvalidRequestError),
    ("requests wait already", UnavailableError),
    ("is being unloaded", UnavailableError),
    ("deadline", DeadlineExceededError),
)
_SERVER_DEADLINE = "timeout_seconds: the request was still"
_CONNECTION_WORDS = ("failed to connect", "connection", "socket", "stream removed", "goaway")


def from_triton(error: InferenceServerException) -> NereidError:
    """The typed error for what tritonclient raised."""
    message = error.message() or str(error)
    status = (error.status() or "").removeprefix("StatusCode.")
    if _SERVER_DEADLINE in message:
        return DeadlineExceededError(message)
    kind = _BY_STATUS.get(status, ServerError)
    if kind is UnavailableError and any(word in message.lower() for word in _CONNECTION_WORDS):
        kind = ConnectionLostError
    if kind is ServerError and not status:  # streams carry the sentence alone
        kind = next((found for words, found in _BY_WORDS if words in message.lower()), kind)
    return kind(message)
