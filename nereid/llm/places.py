"""Who holds a place in the KV memory, whatever a place is: those that decode, and those that are still being read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from nereid.llm.engine import Holder
from nereid.llm.sequences import GeneratedSequence


@dataclass(slots=True, eq=False, kw_only=True)
class Places(ABC):
    """What memories of rows and of blocks share."""

    decoding: list[GeneratedSequence] = field(default_factory=list)
    filling: list[Holder] = field(default_factory=list)

    @property
    def held(self) -> list[Holder]:
        """In the order of their rows."""
        return [*self.decoding, *self.filling]

    @property
    def used_tokens(self) -> int:
        """Places that hold something needed; what several share counts for each of them."""
        return sum(holder.computed for holder in self.held)

    @property
    def sequences(self) -> list[GeneratedSequence]:
        """The answers among those that are held."""
        return [holder for holder in self.held if isinstance(holder, GeneratedSequence)]

    def preempt(self, among: Sequence[GeneratedSequence] | None = None) -> GeneratedSequence:
        """The one of the least standing, of all or of those, gives its place up, and what is computed there with it."""
        last = max(self.sequences if among is None else among, key=lambda sequence: sequence.standing)
        self.release(last)
        last.computed = 0
        return last

    def _give_way(self, set_aside: Sequence[GeneratedSequence]) -> GeneratedSequence:
        """One gives its place up to those that go on: while there are any, one of `set_aside`."""
        return self.preempt([one for one in set_aside if one.row >= 0] or None)

    @abstractmethod
    def release(self, holder: Holder) -> None:
        """Take the place back."""
