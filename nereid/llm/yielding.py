"""Who moves on in a tick: sequences that yield (a batch's) keep their places and wait while somebody else is inside.

They lose nothing by it, and who comes pays for the tick that is under way and for no more. For a while after others have gone
only a few move on, so that this tick is short: who was there lately may come again. Where others are always inside, one of those
that yield at a time moves on beside them: nobody waits for ever.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nereid.flow.tickets import AGING_SECONDS
from nereid.llm.engine import Holder, KvMemory
from nereid.llm.sequences import GeneratedSequence

RAMP_SECONDS = 2.0
"""After others have gone, until all that yield move on."""


@dataclass(slots=True, eq=False)
class Yielding:
    """Asked once in a tick, by `look`."""

    memory: KvMemory
    clock: Callable[[], float] = time.monotonic
    held_up: bool = False
    """Whether what yields waits just now."""
    _beside: GeneratedSequence | None = None
    """The one that moves on beside others."""
    _moved: float = field(init=False)
    """When one that yields could move last."""
    _others_at: float = -math.inf
    """When others were inside last."""
    _few: frozenset[int] | None = None
    """Those that yield and move on a short while after that, by identity; None: all."""

    def __post_init__(self) -> None:
        self._moved = self.clock()

    def look(self, waiting: Iterable[GeneratedSequence]) -> None:
        """See who is inside; `waiting` have no place yet."""
        inside = self.memory.sequences
        outside = list(waiting)
        yielding = [one for one in inside if one.yields] or [one for one in outside if one.yields]
        others = not all(one.yields for one in (*inside, *outside))
        self.held_up = bool(yielding) and others
        now = self.clock()
        if others:
            self._others_at = now
        self._few = None
        if not self.held_up:
            self._moved, self._beside = now, None
            if (quiet := now - self._others_at) < RAMP_SECONDS:
                most = 1 + int((len(yielding) - 1) * (quiet / RAMP_SECONDS) ** 2)
                self._few = frozenset(map(id, sorted(yielding, key=lambda one: one.standing)[:most]))
            return
        if self._beside not in yielding:
            late = now - self._moved >= AGING_SECONDS
            self._beside = min(yielding, key=lambda one: one.standing) if late else None
        if self._beside is not None:
            self._moved = now

    @property
    def set_aside(self) -> list[GeneratedSequence]:
        """Those that have a place and do not move on in this tick."""
        return [one for one in self.memory.sequences if not self.may_move(one)]

    def may_move(self, holder: Holder) -> bool:
        """Whether it decodes, or its prompt is read, in this tick."""
        if not (isinstance(holder, GeneratedSequence) and holder.yields):
            return True
        if self.held_up:
            return holder is self._beside
        return self._few is None or id(holder) in self._few
