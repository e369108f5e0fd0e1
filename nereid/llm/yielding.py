"""Who moves on in a tick: sequences that yield (a batch's) keep their places and wait while somebody else is inside.

They lose nothing by it, and who comes pays for the tick that is under way and for no more. Where others are always inside, one of
those that yield at a time moves on beside them: nobody waits for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nereid.flow.tickets import AGING_SECONDS
from nereid.llm.engine import Holder, KvMemory
from nereid.llm.sequences import GeneratedSequence


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

    def __post_init__(self) -> None:
        self._moved = self.clock()

    def look(self, waiting: Iterable[GeneratedSequence]) -> None:
        """See who is inside; `waiting` have no place yet."""
        inside = [holder for holder in self.memory.held if isinstance(holder, GeneratedSequence)]
        outside = list(waiting)
        yielding = [one for one in inside if one.yields] or [one for one in outside if one.yields]
        self.held_up = bool(yielding) and not all(one.yields for one in (*inside, *outside))
        now = self.clock()
        if not self.held_up:
            self._moved, self._beside = now, None
            return
        if self._beside not in yielding:
            late = now - self._moved >= AGING_SECONDS
            self._beside = min(yielding, key=lambda one: one.standing) if late else None
        if self._beside is not None:
            self._moved = now

    def may_move(self, holder: Holder) -> bool:
        """Whether it decodes, or its prompt is read, in this tick."""
        if not (self.held_up and isinstance(holder, GeneratedSequence) and holder.yields):
            return True
        return holder is self._beside
