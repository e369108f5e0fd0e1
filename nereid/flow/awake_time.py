"""Time as one may count it who watches others: it stands while the watcher does. Knows nothing of what is watched.

A machine that is paused or swaps, or a process that is held, stops the watcher too. When it goes on, what it watches has been
silent for as long, and is not to blame: it may not even run again yet. So a watcher judges by no silence that it has not
attended itself.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LATE_SECONDS = 1.0
"""Between two looks of a watcher that looks several times a second: what lies beyond, it has not attended."""
_LOOK_SECONDS = 0.1


@dataclass(slots=True)
class AwakeTime:
    """One watcher's. It calls `look` at the beginning of each of its rounds; anybody may ask for `now`."""

    late_seconds: float = LATE_SECONDS
    _looked: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), 0.0), init=False)
    """When the last look was, and how much was lost until then: replaced as one."""
    _woke: float = field(default=-math.inf, init=False)

    def look(self) -> float:
        """A round begins: what time it is. One that comes late begins afresh."""
        now = time.monotonic()
        before, lost = self._looked
        if (late := now - before - self.late_seconds) > 0:
            lost += late
            self._woke = now - lost
        self._looked = now, lost
        return now - lost

    def now(self) -> float:
        """To note when something was, or until when it may last."""
        looked, lost = self._looked
        return min(time.monotonic(), looked + self.late_seconds) - lost

    def silent_since(self, moment: float) -> float:
        """Seconds from then to the last look; from the last late one on, where that was later: whoever is watched has a full
        period anew."""
        looked, lost = self._looked
        return looked - lost - max(moment, self._woke)


@dataclass(slots=True, eq=False)
class AwakeTimer:
    """Calls `then`, on a thread of its own, once so many seconds have been attended; not after `cancel`."""

    seconds: float
    then: Callable[[], object]
    _cancelled: threading.Event = field(default_factory=threading.Event, init=False)

    def start(self) -> None:
        threading.Thread(target=self._run, name="timer", daemon=True).start()

    def cancel(self) -> None:
        self._cancelled.set()

    def _run(self) -> None:
        awake = AwakeTime()
        end = awake.now() + self.seconds
        while not self._cancelled.wait(_LOOK_SECONDS):
            if awake.look() >= end:
                self.then()
                return
