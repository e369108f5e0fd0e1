"""How often streams are answered: an answer costs processor time that the engine then lacks, so many share a bound."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from nereid.engines.processors import available_processors

ANSWERS_PER_PROCESSOR = 50
"""A second. An answer costs about a millisecond in this process, Triton and a client beside it: a twentieth of a processor."""


@dataclass(slots=True, eq=False)
class StreamPace:
    """The time between two answers of one stream: `least_seconds`, and more where all streams together would give more than
    `answers_per_second` (0: as many as the processors allow). Without a least time every token is answered by itself.

    First and last answers are not held back, and come beside that.
    """

    least_seconds: float = 0.0
    answers_per_second: float = 0.0
    rows: int = field(default=0, init=False)
    """That are being written now: a stream of `n` rows gives an answer for each."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.answers_per_second = self.answers_per_second or float(ANSWERS_PER_PROCESSOR * available_processors())

    @property
    def seconds(self) -> float:
        return self.least_seconds and max(self.least_seconds, self.rows / self.answers_per_second)

    def begin(self, rows: int) -> None:
        """One more stream is being written."""
        with self._lock:
            self.rows += rows

    def end(self, rows: int) -> None:
        with self._lock:
            self.rows -= rows
