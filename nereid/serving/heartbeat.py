"""How a service tells its supervisor that it works: a pipe with an empty line a beat, or a sentence about why it ends.

A pipe of its own, and not a request to the service's port: what strangers do to that port says nothing about the service.
Knows nothing of services.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from nereid.flow.awake_time import AwakeTime

BEAT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Heart:
    """The service's end: nothing here waits or raises, a supervisor that is gone ends the service by other means."""

    descriptor: int

    def beat(self) -> None:
        self._write(b"\n")

    def fail(self, sentence: str) -> None:
        """Say why the service ends; an error's further lines are left out."""
        self._write(sentence.strip().split("\n")[0].encode(errors="replace")[:1000] + b"\n")

    def _write(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            os.set_blocking(self.descriptor, False)
            os.write(self.descriptor, line)


@dataclass(slots=True)
class Pulse:
    """The supervisor's end. `listen`, several times a second, takes in what has come and never waits; `sender` is passed on to
    the service."""

    receiver: int
    sender: int
    has_beaten: bool = field(default=False, init=False)
    failure: str = field(default="", init=False)
    _time: AwakeTime = field(default_factory=AwakeTime, init=False)
    _last: float = field(init=False)
    _rest: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        self._last = self._time.now()

    @classmethod
    def create(cls) -> Pulse:
        receiver, sender = os.pipe()
        os.set_blocking(receiver, False)
        return cls(receiver, sender)

    def close_sender(self) -> None:
        """Once the service has it."""
        if self.sender >= 0:
            os.close(self.sender)
            self.sender = -1

    def listen(self) -> None:
        self._time.look()
        with contextlib.suppress(OSError):
            while part := os.read(self.receiver, 65536):
                *lines, self._rest = (self._rest + part).split(b"\n")
                if b"" in lines:
                    self.has_beaten = True
                    self._last = self._time.now()
                self.failure = next((line.decode(errors="replace") for line in lines if line), self.failure)

    @property
    def silence(self) -> float:
        """Seconds since the last beat, or since the start; none of those in which nobody listened."""
        return self._time.silent_since(self._last)

    def close(self) -> None:
        self.close_sender()
        if self.receiver >= 0:
            os.close(self.receiver)
            self.receiver = -1
