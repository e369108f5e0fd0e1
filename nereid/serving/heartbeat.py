"""How a service tells its supervisor that it works: a pipe with an empty line a beat, or a sentence about why it ends.

A pipe of its own, and not a request to the service's port: what strangers do to that port says nothing about the service.
Knows nothing of services.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field

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
    """The supervisor's end. `listen` takes in what has come and never waits; `sender` is passed on to the service."""

    receiver: int
    sender: int
    began: float = field(default_factory=time.monotonic)
    has_beaten: bool = field(default=False, init=False)
    failure: str = field(default="", init=False)
    _last: float = field(default=0.0, init=False)
    _rest: bytes = field(default=b"", init=False)

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
        with contextlib.suppress(OSError):
            while part := os.read(self.receiver, 65536):
                *lines, self._rest = (self._rest + part).split(b"\n")
                if b"" in lines:
                    self.has_beaten = True
                    self._last = time.monotonic()
                self.failure = next((line.decode(errors="replace") for line in lines if line), self.failure)

    @property
    def silence(self) -> float:
        """Seconds since the last beat, or since the start."""
        return time.monotonic() - (self._last or self.began)

    def close(self) -> None:
        self.close_sender()
        if self.receiver >= 0:
            os.close(self.receiver)
            self.receiver = -1
