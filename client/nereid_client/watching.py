"""Whether a run that does not answer is still there: what its holder's answers to `watch` mean; asks nobody itself.

A process of `denoise` or `llm` that dies takes its late answers with it, and Triton 24.10 never ends those requests. So who
waits for more than a second asks for the run by its id. Two answers prove a loss: the process is dead, or a run that was there
is unknown. Two make it likely: a run that has never been there, though it had time to arrive, and one that is done and whose
answer does not come.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from nereid_client.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    NereidError,
    NotReadyError,
    UnhealthyError,
)

ASK_SECONDS = 1.0
"""Between two questions, and before the first."""
ANSWER_SECONDS = 3.0
"""What a question may take."""
_UNKNOWN_TIMES = 2
_ARRIVAL_SECONDS = 5.0
_DELIVERY_SECONDS = 30.0
_STREAM_DELIVERY_SECONDS = 10.0
"""After the end of a run its picture is still decoded, and may wait for others. A stream that has died is seen by this alone."""


class Finding(Enum):
    NOTHING = auto()
    UNSUPPORTED = auto()
    LIKELY_LOST = auto()
    LOST = auto()


@dataclass(slots=True, kw_only=True)
class Watch:
    """One attempt's watch. `patience` multiplies the times that make a loss likely: it doubles with every replay."""

    sent: float
    streamed: bool = False
    patience: float = 1.0
    next_question: float = 0.0
    unanswered_since: float | None = None
    _seen: bool = False
    _unknown: int = 0
    _ended: float | None = None

    def __post_init__(self) -> None:
        self.next_question = self.sent + ASK_SECONDS

    def asked(self, now: float) -> None:
        if self.unanswered_since is None:
            self.unanswered_since = now

    def closed(self, now: float) -> None:
        """A question is over, one way or the other."""
        self.next_question = now + ASK_SECONDS

    def answered(self, state: str, now: float) -> Finding:
        """The holder's answer: unknown, waiting, running, done or failed."""
        self.unanswered_since = None
        if state == "unknown":
            self._unknown += 1
            if self._unknown < _UNKNOWN_TIMES:
                return Finding.NOTHING
            if self._seen:
                return Finding.LOST
            return Finding.LIKELY_LOST if now - self.sent > _ARRIVAL_SECONDS * self.patience else Finding.NOTHING
        self._unknown, self._seen = 0, True
        if state not in ("done", "failed"):
            self._ended = None
            return Finding.NOTHING
        if self._ended is None:
            self._ended = now
        delivery = _STREAM_DELIVERY_SECONDS if self.streamed else _DELIVERY_SECONDS
        return Finding.LIKELY_LOST if now - self._ended > delivery * self.patience else Finding.NOTHING

    def progressed(self) -> None:
        """An answer of the run itself came."""
        self._seen, self._ended, self.unanswered_since = True, None, None

    def failed(self, error: NereidError) -> Finding:
        """The question ended with an error; one that nobody answers says nothing yet."""
        if isinstance(error, UnhealthyError):
            return Finding.LOST
        if not isinstance(error, ConnectionLostError | DeadlineExceededError | NotReadyError):
            self.unanswered_since = None
        return Finding.UNSUPPORTED if isinstance(error, InvalidRequestError) else Finding.NOTHING

    def silence(self, now: float) -> float:
        """For how many seconds questions have had no answer."""
        return 0.0 if self.unanswered_since is None else now - self.unanswered_since
