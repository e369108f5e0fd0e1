"""KV memory as blocks, each sequence with a table of them: who holds which; knows nothing of what is computed in them.

All that decode and all chunks of prompts are one call. Blocks of a known prefix are shared, not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.engines.kv_blocks import Piece
from nereid.llm.block_pool import BlockPool
from nereid.llm.engine import BlockEngine, Chunk, Holder, longest_row
from nereid.llm.places import Places
from nereid.llm.sequences import GeneratedSequence


@dataclass(slots=True, eq=False)
class KvBlocks(Places):
    """An engine's memory as blocks, and the sequences that hold them. Used by one thread.

    `kv_tokens` is what was asked for, and bounds the length of a sequence; the engine may have more, for prefixes. Running
    sequences go before those: they may take every block.
    """

    engine: BlockEngine
    kv_tokens: int
    max_rows: int
    context_length: int
    caches: bool = True
    prefix_hits: tuple[int, int] = (0, 0)
    _pool: BlockPool = field(init=False)
    _tables: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pool = BlockPool(self.engine.blocks, self.engine.block_size)

    @property
    def tokens(self) -> int:
        return (self.engine.blocks - 1) * self.engine.block_size

    @property
    def longest(self) -> int:
        """Tokens a sequence can have at most; two places are for what an engine appends as padding."""
        return longest_row(self.context_length, self.kv_tokens) - 2

    @property
    def prefix_block(self) -> int:
        return self.engine.block_size if self.caches else 0

    def table(self, holder: Holder) -> list[int]:
        """Its blocks, in the order of its tokens."""
        return self._tables[id(holder)]

    # --- calls ---

    def run(
        self, decoding: Sequence[GeneratedSequence], chunks: Sequence[Chunk]
    ) -> tuple[NDArray[np.float32] | None, list[NDArray[np.float32]]]:
        """One call for all of them.

        What may be speculated on is always read like a prompt, so that it is rounded alike whether it came in a draft or not.
        """
        pieces = [
            Piece(self.table(s), s.computed, [s.tokens[s.computed]], decoded=s.meter is None, adapter=s.adapter) for s in decoding
        ]
        pieces += [self._piece(chunk) for chunk in chunks]
        if not any(chunk.states for chunk in chunks):
            logits = states = self.engine.run(pieces)
        else:
            logits, states = self.engine.run_with_states(pieces)
        parts, kept, stated = [], len(decoding), 0
        for chunk in chunks:
            if chunk.states:
                parts.append(states[stated : stated + len(chunk.tokens)])
                stated += len(chunk.tokens)
            else:
                parts.append(logits[kept : kept + chunk.keep])
                kept += chunk.keep
        return (logits[: len(decoding)] if decoding else None), parts

    def _piece(self, chunk: Chunk) -> Piece:
        holder, keep = chunk.holder, 0 if chunk.states else chunk.keep
        return Piece(self.table(holder), holder.computed, chunk.tokens, keep, adapter=holder.adapter, states=chunk.states)

    # --- holders ---

    def known(self, prompt: Sequence[int], adapter: int = 0, salt: str = "") -> int:
        return len(self._pool.match(prompt, adapter, salt)) * self.engine.block_size if self.caches else 0

    def begin(self, holder: Holder, slots: int, *, counted: bool = True, cached: bool = True) -> bool:
        """Lend blocks for `slots` tokens; those of the prompt that are known are shared."""
        if len(self.held) >= self.max_rows:
            return False
        shared = self._pool.match(holder.prompt, holder.adapter, holder.cache_salt) if self.caches and cached else []
        table = self._pool.take(shared, self._blocks_for(slots) - len(shared))
        if table is None:
            return False
        self._tables[id(holder)] = table
        holder.row, holder.computed = len(self.held), len(shared) * self.engine.block_size
        self.filling.append(holder)
        if counted and cached and self.caches:
            queried, hits = self.prefix_hits
            self.prefix_hits = (queried + len(holder.prompt), hits + holder.computed)
        return True

    def grow(self, set_aside: Sequence[GeneratedSequence] = ()) -> list[GeneratedSequence]:
        """Those of the best standing get their blocks first; the last give theirs up where there are no more."""
        preempted: list[GeneratedSequence] = []
        moving = [sequence for sequence in self.decoding if sequence not in set_aside]
        for sequence in sorted(moving, key=lambda sequence: sequence.standing):
            while sequence in self.decoding:
                table = self.table(sequence)
                more = self._pool.take((), self._blocks_for(sequence.computed + 2 + sequence.lookahead) - len(table))
                if more is not None:
                    table += more
                    break
                preempted.append(self._give_way(set_aside))
        return preempted

    def join(self, sequence: GeneratedSequence) -> None:
        self.remember(sequence)
        self.filling.remove(sequence)
        self.decoding.append(sequence)

    def put_first(self, sequences: Sequence[GeneratedSequence]) -> None:
        """Any of them can be left out of a call: blocks have no order."""

    def remember(self, holder: Holder) -> None:
        if self.caches:
            self._pool.remember(holder.prompt[: holder.computed], self.table(holder), holder.adapter, holder.cache_salt)

    def release(self, holder: Holder) -> None:
        for holders in (self.filling, self.decoding):
            if holder in holders:
                holders.remove(holder)  # type: ignore[arg-type]
        self._pool.give_back(self._tables.pop(id(holder)))
        for row, other in enumerate(self.held):
            other.row = row
        holder.row = -1

    def _blocks_for(self, slots: int) -> int:
        return -(-slots // self.engine.block_size)


@dataclass(slots=True, eq=False)
class DraftBlocks:
    """A draft model's engine as a few rows, each of which has its blocks for good."""

    engine: BlockEngine
    _tables: list[range] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return (self.engine.blocks - 1) * self.engine.block_size

    @property
    def vocabulary(self) -> int:
        return self.engine.vocabulary

    def arrange(self, rows: int, capacity: int) -> None:
        size = -(-capacity // self.engine.block_size)
        self._tables = [range(1 + row * size, 1 + (row + 1) * size) for row in range(rows)]
        if rows * size > self.engine.blocks - 1:
            raise ValueError(f"{rows} rows of {size} blocks are more than the {self.engine.blocks - 1} there are")

    def extend(self, row: int, start: int, tokens: Sequence[int], keep: int = 1) -> NDArray[np.float32]:
        return self.engine.run([Piece(self._tables[row], start, tokens, keep)])
