"""Language models whose logits are a known function of the tokens really seen: their KV caches hold the tokens themselves.

With `rounds` they tell decode from extend, as real engines do: a token that was decoded leaves another KV than one that was
read like a prompt, and logits depend on it. So they do on the adapter by which each token was computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.engines.kv_blocks import SCRATCH, Piece

DECODED = 1 << 20
"""What is added to a token in the KV cache of an engine that rounds, where it was decoded."""
ADAPTED = 1 << 22
"""What is added to a token there for each adapter before the one that has computed it, the model itself among them."""


def logits_after(tokens: Sequence[int], vocabulary: int) -> NDArray[np.float32]:
    """Logits that depend on every token and its position; after a repeated run the old continuation is likely, as in text."""
    digest = hashlib.blake2b(np.asarray(tokens, np.int64).tobytes(), digest_size=8).digest()
    values = np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(vocabulary).astype(np.float32)
    tail = list(tokens[-2:])
    for start in range(len(tokens) - 3, 0, -1):
        if len(tail) == 2 and list(tokens[start - 1 : start + 1]) == tail:
            values[tokens[start + 1] % DECODED] += 2.5
            break
    return values


WIDTH = 6
"""Of last hidden states."""


def state_after(tokens: Sequence[int]) -> NDArray[np.float32]:
    """The last token's, which depends on every token and its position, as logits do."""
    return logits_after([-1, *tokens], 50)[:WIDTH]


def mean_of(tokens: Sequence[int], adapter: int = 0) -> NDArray[np.float32]:
    """What a prompt is embedded as, all of its states at once."""
    seen = [token + adapter * ADAPTED for token in tokens]
    states = [state_after(seen[: place + 1]).astype(np.float64) for place in range(len(seen))]
    total = np.zeros(WIDTH)
    for state in states:
        total = total + state
    return (total / len(seen)).astype(np.float32)


@dataclass(slots=True, eq=False)
class ClosedFormEngine:
    """Honours the whole interface of RowEngine; rows that overlap or shift by mistake change the answers."""

    tokens: int
    vocabulary: int = 50
    rows: int = 0
    capacity: int = 0
    memory: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 1, 0, 1), np.int64))
    rounds: bool = False
    calls: list[tuple[str, int]] = field(default_factory=list)

    def arrange(self, rows: int, capacity: int, lengths: Sequence[int] = ()) -> None:
        assert (rows + 1) * capacity <= self.tokens
        fresh = np.full((rows, 1, capacity, 1), -1, np.int64)
        for row, length in enumerate(lengths):
            fresh[row, :, :length] = self.memory[row, :, :length]
        self.memory, self.rows, self.capacity = fresh, rows, capacity
        self.calls.append(("arrange", rows))

    def move(self, source: int, target: int, length: int) -> None:
        self.memory[target, :, :length] = self.memory[source, :, :length]
        self.memory[source] = -1

    def swap(self, first: int, second: int, length: int) -> None:
        kept = self.memory[first, :, :length].copy()
        self.memory[first], self.memory[second, :, length:] = -1, -1
        self.memory[first, :, :length] = self.memory[second, :, :length]
        self.memory[second, :, :length] = kept

    def read(self, row: int, start: int, end: int) -> NDArray:
        return self.memory[row, :, start:end].copy()

    def write(self, row: int, start: int, block: NDArray) -> None:
        self.memory[row, :, start : start + block.shape[1]] = block

    def decode(self, tokens: Sequence[int], lengths: Sequence[int], adapters: Sequence[int] = ()) -> NDArray[np.float32]:
        self.calls.append(("decode", len(tokens)))
        rows = zip(tokens, lengths, adapters or [0] * len(tokens), strict=True)
        return np.stack(
            [
                self._append(row, length, [token], adapter, decoded=self.rounds)[0]
                for row, (token, length, adapter) in enumerate(rows)
            ]
        )

    def extend(self, row: int, start: int, tokens: Sequence[int], keep: int = 1, adapter: int = 0) -> NDArray[np.float32]:
        self.calls.append(("extend", len(tokens)))
        assert start + len(tokens) + 1 <= self.capacity, "one more slot must be free"
        return np.stack(self._append(row, start, tokens, adapter)[-keep:])

    def read_states(self, row: int, start: int, tokens: Sequence[int], adapter: int = 0) -> NDArray[np.float32]:
        self.extend(row, start, tokens, adapter=adapter)
        seen = self.memory[row, 0, : start + len(tokens), 0].tolist()
        return np.stack([state_after(seen[: place + 1]) for place in range(start, len(seen))])

    def _append(
        self, row: int, start: int, tokens: Sequence[int], adapter: int, *, decoded: bool = False
    ) -> list[NDArray[np.float32]]:
        made = []
        for slot, token in enumerate(tokens, start):
            self.memory[row, 0, slot, 0] = token + (DECODED if decoded else 0) + adapter * ADAPTED
            seen = self.memory[row, 0, : slot + 1, 0]
            assert (seen >= 0).all(), "a slot that nobody has written"
            made.append(logits_after(seen.tolist(), self.vocabulary))
        return made


@dataclass(slots=True, eq=False)
class ClosedFormBlocks:
    """Honours the whole interface of BlockEngine; a block that two use by mistake changes the answers."""

    blocks: int
    block_size: int = 32
    vocabulary: int = 50
    rounds: bool = False
    calls: list[list[Piece]] = field(default_factory=list)
    memory: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.memory = np.full((self.blocks, self.block_size), -1, np.int64)

    def run(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        assert not any(piece.states for piece in pieces)
        return self.run_with_states(pieces)[0]

    def run_with_states(self, pieces: Sequence[Piece]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.calls.append(list(pieces))
        logits, states = [np.zeros((0, self.vocabulary), np.float32)], [np.zeros((0, WIDTH), np.float32)]
        for piece in pieces:
            made = self._append(piece)
            logits += [row[None] for row in made]
            if piece.states:
                assert not piece.keep
                seen = self.memory[list(piece.table)].reshape(-1)[: piece.start + len(piece.tokens)].tolist()
                states += [state_after(seen[: place + 1])[None] for place in range(piece.start, len(seen))]
        return np.concatenate(logits), np.concatenate(states)

    def _append(self, piece: Piece) -> list[NDArray[np.float32]]:
        assert SCRATCH not in piece.table
        assert piece.start + len(piece.tokens) + (not piece.decoded) <= len(piece.table) * self.block_size, "no free place"
        made = []
        for slot, token in enumerate(piece.tokens, piece.start):
            block, place = divmod(slot, self.block_size)
            kept = token + (DECODED if piece.decoded and self.rounds else 0) + piece.adapter * ADAPTED
            self.memory[piece.table[block], place] = kept
            seen = self.memory[list(piece.table)].reshape(-1)[: slot + 1]
            assert (seen >= 0).all(), "a slot that nobody has written"
            made.append(logits_after(seen.tolist(), self.vocabulary))
        return made[len(made) - piece.keep :]
