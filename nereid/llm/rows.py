"""KV memory as rows of equal capacity: who holds which row, and how long the rows are; knows nothing of what is computed in them.

Rows 0 to n-1 are decoded in one call, or the first of them where the others wait; those behind them are being prefilled, each in
calls of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.llm.engine import Chunk, Holder, RowEngine, longest_row
from nereid.llm.places import Places
from nereid.llm.prefix_cache import BLOCK, PrefixCache
from nereid.llm.sequences import GeneratedSequence

SMALLEST_CAPACITY = 256


@dataclass(slots=True, eq=False)
class KvRows(Places):
    """An engine's memory as rows, and the sequences that hold them. Used by one thread."""

    engine: RowEngine
    cache: PrefixCache
    max_rows: int
    context_length: int

    @property
    def tokens(self) -> int:
        return self.engine.tokens

    @property
    def largest_capacity(self) -> int:
        return longest_row(self.context_length, self.engine.tokens)

    @property
    def longest(self) -> int:
        """Tokens a sequence can have at most: two fewer than a row has slots, for what an engine appends as padding."""
        return self.largest_capacity - 2

    @property
    def prefix_block(self) -> int:
        return BLOCK if self.cache.budget else 0

    @property
    def prefix_hits(self) -> tuple[int, int]:
        return self.cache.queried_tokens, self.cache.hit_tokens

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
            self.engine.arrange(fitting, capacity, [holder.computed for holder in self.held])
        return True

    def grow(self, set_aside: Sequence[GeneratedSequence] = ()) -> list[GeneratedSequence]:
        """Longer rows for all, where the longest needs one; those of the least standing give theirs up where they do not fit."""
        preempted: list[GeneratedSequence] = []
        while self.decoding:
            held = self.sequences
            slots = max((s.computed + 2 + s.lookahead for s in held if s not in set_aside), default=0)
            if slots <= self.engine.capacity or self.make_room(slots, len(held)):
                break
            preempted.append(self._give_way(set_aside))
        return preempted

    # --- calls ---

    def run(
        self, decoding: Sequence[GeneratedSequence], chunks: Sequence[Chunk]
    ) -> tuple[NDArray[np.float32] | None, list[NDArray[np.float32]]]:
        """Every chunk is a call of its own, all that decode, from the first row on, are one."""
        read = [self._read(chunk) for chunk in chunks]
        if not decoding:
            return None, read
        tokens, lengths = [s.tokens[s.computed] for s in decoding], [s.computed for s in decoding]
        return self.engine.decode(tokens, lengths, [s.adapter for s in decoding]), read

    def _read(self, chunk: Chunk) -> NDArray[np.float32]:
        holder = chunk.holder
        if chunk.states:
            return self.engine.read_states(holder.row, holder.computed, chunk.tokens, adapter=holder.adapter)
        return self.engine.extend(holder.row, holder.computed, chunk.tokens, keep=chunk.keep, adapter=holder.adapter)

    # --- holders ---

    def known(self, prompt: Sequence[int], adapter: int = 0, salt: str = "") -> int:
        return len(self.cache.match(prompt, adapter, salt, counted=False)) * BLOCK

    def begin(self, holder: Holder, slots: int, *, counted: bool = True, cached: bool = True) -> bool:
        """Lend the row behind the others, with what the prefix cache has of the prompt copied in."""
        row = len(self.held)
        if not self.make_room(slots, row + 1):
            return False
        blocks = self.cache.match(holder.prompt, holder.adapter, holder.cache_salt, counted=counted) if cached else []
        for number, block in enumerate(blocks):
            self.engine.write(row, number * BLOCK, block.values)
        holder.row, holder.computed = row, len(blocks) * BLOCK
        self.filling.append(holder)
        return True

    def join(self, sequence: GeneratedSequence) -> None:
        """It decodes in the next row: the first of those that are being prefilled, which may wait, gives that up."""
        self.remember(sequence)
        place = self.filling.index(sequence)
        self._swap(self.filling, 0, place)
        self.filling.pop(0)
        self.decoding.append(sequence)

    def put_first(self, sequences: Sequence[GeneratedSequence]) -> None:
        """They get the first rows."""
        wanted, count = {id(sequence) for sequence in sequences}, len(sequences)
        others = [row for row in range(count) if id(self.decoding[row]) not in wanted]
        behind = [row for row in range(count, len(self.decoding)) if id(self.decoding[row]) in wanted]
        for first, second in zip(others, behind, strict=True):
            self._swap(self.decoding, first, second)

    def remember(self, holder: Holder) -> None:
        known = holder.prompt[: holder.computed]
        read = partial(self.engine.read, holder.row)
        self.cache.insert(known, read, holder.adapter, holder.cache_salt)

    def release(self, holder: Holder) -> None:
        """Free a row; the last decoding row takes its place, and those being prefilled move up."""
        if holder in self.filling:
            gap = self.filling.index(holder)
            self.filling.remove(holder)
        else:
            gap, last = 0, self.decoding[-1]
            if last is not holder:
                self._move(last, holder.row)
                self.decoding[holder.row] = last
            self.decoding.pop()
        for moved in self.filling[gap:]:
            self._move(moved, moved.row - 1)
        holder.row = -1

    def _swap(self, holders: list[Any], first: int, second: int) -> None:
        """Exchange the rows of two of these."""
        if first == second:
            return
        one, other = holders[first], holders[second]
        self.engine.swap(one.row, other.row, max(one.computed, other.computed))
        one.row, other.row = other.row, one.row
        holders[first], holders[second] = other, one

    def _move(self, holder: Holder, row: int) -> None:
        self.engine.move(holder.row, row, holder.computed)
        holder.row = row
