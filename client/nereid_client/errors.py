"""What a request to a server can end with.

NereidError
├── InvalidRequestError     a field is not allowed to have its value; trying again will not help
│   └── ContextLengthError  prompt and answer do not fit into the model's context
├── UnavailableError        the server cannot take it now; retried with backoff before it is raised
│   ├── QueueFullError      as many requests wait as may
│   ├── NotReadyError       a model that it needs is being loaded, or stopped
│   ├── LostError           what computed it has died; replayed before it is raised
│   │   └── UnhealthyError  ... and has not been replaced yet
│   └── ConnectionLostError nobody answers at the address, or (`sent`) the connection broke with the request under way
├── DeadlineExceededError   the time given to the request ran out
├── CancelledError          it was cancelled from here
├── UnsupportedError        the chosen protocol cannot do this
└── ServerError             anything else that went wrong over there
"""

from __future__ import annotations

from nereid_protocol.errors import ErrorKind, WireError


class NereidError(Exception):
    """Base of all errors of this SDK: the server's sentence, and the request's field that it names, where it names one.

    `request_id` is the id under which the server's log has the request; None where no request was made.
    """

    request_id: str | None = None

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidRequestError(NereidError):
    pass


class ContextLengthError(InvalidRequestError):
    pass


class UnavailableError(NereidError):
    pass


class QueueFullError(UnavailableError):
    pass


class NotReadyError(UnavailableError):
    pass


class ConnectionLostError(UnavailableError):
    """`sent`: the request may have reached the server, which may have begun with it."""

    def __init__(self, message: str, field: str | None = None, *, sent: bool = False) -> None:
        super().__init__(message, field)
        self.sent = sent


class LostError(UnavailableError):
    pass


class UnhealthyError(LostError):
    pass


class DeadlineExceededError(NereidError):
    """`bare`: what carried the call has ended it, and the model has said nothing of it."""

    def __init__(self, message: str, field: str | None = None, *, bare: bool = False) -> None:
        super().__init__(message, field)
        self.bare = bare


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
    ErrorKind.TOO_LONG: ContextLengthError,
    ErrorKind.QUEUE_FULL: QueueFullError,
    ErrorKind.STOPPING: NotReadyError,
    ErrorKind.DEADLINE: DeadlineExceededError,
    ErrorKind.CANCELLED: CancelledError,
    ErrorKind.LOST: LostError,
    ErrorKind.ENGINE: ServerError,
}
_CONNECTION_WORDS = (
    *("failed to connect", "connection", "socket", "stream removed", "goaway", "cancelling all calls", "broken pipe"),
    *(
        "reset by peer",
        "recvmsg",
        "sendmsg",
        "rst_stream",
        "transport",
        "endpoint",
        "resolving",
        "ping timeout",
        "too_many_pings",
        "keepalive",
        "tcp",
        "handshake",
    ),
)
"""gRPC's sentences about a connection; their status is the one of servers that are busy."""
_NEVER_SENT_WORDS = ("failed to connect", "connection refused", "name resolution", "errors resolving", "dns")
_TRITONS_OWN: tuple[tuple[str, type[NereidError]], ...] = (
    ("is not healthy", UnhealthyError),
    ("xceeds maximum queue size", QueueFullError),
    ("has no available versions", NotReadyError),
    ("is not at ready state", NotReadyError),
    ("Server not ready", NotReadyError),
    ("Server is stopping", NotReadyError),
    ("Request for unknown model", InvalidRequestError),
    ("unexpected inference input", InvalidRequestError),
    ("inputs but got", InvalidRequestError),
    ("unexpected shape for input", InvalidRequestError),
    ("unexpected data-type", InvalidRequestError),
)
"""Sentences of Triton itself. In a stream they come without a status, and a model that is being loaded again is "not found"."""


def typed(message: str, status: str = "") -> NereidError:
    """The typed error for a sentence and a status (gRPC's name or HTTP's number); streams have sentences only."""
    sent = WireError.parse(message)
    if sent is not None:
        return _BY_KIND[sent.kind](sent.sentence, sent.field)
    for words, own in _TRITONS_OWN:
        if words in message:
            return own(message)
    kind = _BY_STATUS.get(status.removeprefix("StatusCode."), ServerError)
    lowered = message.lower()
    if kind is UnavailableError and any(words in lowered for words in _CONNECTION_WORDS):
        return ConnectionLostError(message, sent=not any(words in lowered for words in _NEVER_SENT_WORDS))
    return DeadlineExceededError(message, bare=True) if kind is DeadlineExceededError else kind(message)
