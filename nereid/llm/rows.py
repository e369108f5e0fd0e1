"""Who holds which row of the KV cache, and how long the rows are: bookkeeping; knows nothing of what is computed in them.

Rows 0 to n-1 are decoded in one call, row n is being prefilled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nereid.llm.engine import CausalEngine, longest_row
from nereid.llm.prefix_cache import BLOCK, PrefixCache
from nereid.llm.sequences import GeneratedSequence

SMALLEST_CAPACITY = 256


@dataclass(slots=True, eq=False)
class KvRows:
    """The engine's memory as rows of equal capacity, and the sequences that hold them. Used by one thread."""

    engine: CausalEngine
    cache: PrefixCache
    max_rows: int
    context_length: int
    decoding: list[GeneratedSequence] = field(default_factory=list)
    filling: GeneratedSequence | None = None

    @property
    def largest_capacity(self) -> int:
        return longest_row(self.context_length, self.engine.tokens)

    @property
    def longest(self) -> int:
        """Tokens a sequence can have at most: two fewer than a row has slots, for what an engine appends as padding."""
        return self.largest_capacity - 2

    @property
    def held(self) -> list[GeneratedSequence]:
        return [*self.decoding, *([self.filling] if self.filling else [])]

    @property
    def used_tokens(self) -> int:
        """Places of the KV cache that hold something needed."""
        return sum(sequence.computed for sequence in self.held)

    # --- slots ---

    def make_room(self, slots: int, rows: int) -> bool:
        """Rows of at least `slots` tokens; False where `rows` of them do not fit."""
        capacity = self.engine.capacity if self.held else SMALLEST_CAPACITY
        while capacity < slots:
            capacity *= 2
        capacity = min(capacity, self.largest_capacity)
        fitting = min(self.max_rows, self.engine.tokens // capacity - 1)
        if rows > fitting:
            return False
        if capacity != self.engine.capacity or fitting != self.engine.rows:
            self.engine.arrange(fitting, capacity, [sequence.computed for sequence in self.held])
        return True

    def grow(self) -> list[GeneratedSequence]:
        """A free slot for every row, before a decode call; those that lost their row for it, the youngest first."""
        preempted: list[GeneratedSequence] = []
        while self.decoding:
            slots = max(s.computed + 2 + s.lookahead for s in self.held)
            if slots <= self.engine.capacity or self.make_room(slots, len(self.held)):
                break
            youngest = max(self.held, key=lambda s: s.admission)
            self.release(youngest)
            youngest.computed = 0
            preempted.append(youngest)
        return preempted

    # --- holders ---

    def begin(self, sequence: GeneratedSequence) -> None:
        """Lend the row behind those that decode, with what the prefix cache has of the prompt filled in."""
        self.filling = sequence
        sequence.row = len(self.decoding)
        sequence.computed = self.restore(sequence.row, sequence.prompt)
        if not sequence.written:
            sequence.cached_tokens = sequence.computed

    def join(self, sequence: GeneratedSequence) -> None:
        """The prompt is read: from now on the row decodes with the others."""
        self.remember(sequence.row, sequence.prompt)
        self.filling = None
        self.decoding.append(sequence)

    def release(self, sequence: GeneratedSequence) -> None:
        """Free a row; the last decoding row and the one being prefilled move up."""
        if sequence is self.filling:
            self.filling = None
        else:
            hole = sequence.row
            last = self.decoding[-1]
            if last is not sequence:
                self.engine.move(last.row, hole, last.computed)
                last.row = hole
                self.decoding[hole] = last
            self.decoding.pop()
            if self.filling is not None:
                self.engine.move(self.filling.row, len(self.decoding), self.filling.computed)
                self.filling.row = len(self.decoding)
        sequence.row = -1

    # --- the prefix cache ---

    def restore(self, row: int, tokens: Sequence[int], *, counted: bool = True) -> int:
        """Fill the row with what the prefix cache has of `tokens`; how many slots that is."""
        blocks = self.cache.match(tokens, counted=counted)
        for number, block in enumerate(blocks):
            self.engine.write(row, number * BLOCK, block.values)
        return len(blocks) * BLOCK

    def remember(self, row: int, tokens: Sequence[int]) -> None:
        self.cache.insert(tokens, lambda start, end: self.engine.read(row, start, end))
