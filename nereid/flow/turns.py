"""Turns at something shared: many have theirs together, and who may be dangerous has one alone. Knows nothing of the work."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

ASK_SECONDS = 0.1
"""Between two looks whether who waits is still waited for."""


@dataclass(slots=True, eq=False)
class Turns:
    """Safe to use from several threads. Those who want to be alone go first, so that they are not passed over for ever."""

    _inside: int = 0
    _alone: bool = False
    _wanting: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @contextlib.contextmanager
    def take(self, wait: Callable[[], None], *, alone: bool = False) -> Iterator[None]:
        """A turn, for the time inside; `wait` is called while others have theirs, and raises what ends the waiting."""
        with self._changed:
            self._wanting += alone
            try:
                while self._alone or (self._inside if alone else self._wanting):
                    wait()
                    self._changed.wait(ASK_SECONDS)
                self._inside, self._alone = self._inside + 1, alone
            finally:
                self._wanting -= alone
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside, self._alone = self._inside - 1, False
                self._changed.notify_all()
