"""What the loop needs of a decoder-only engine and of the memory that holds its sequences.

The scheduler speaks to a `KvMemory`: whether that deals in rows (nereid.llm.rows, over nereid.engines.onnx_causal) or in blocks
(nereid.llm.blocks, over nereid.engines.openvino_causal) is its own business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from nereid.engines.kv_blocks import Piece

if TYPE_CHECKING:
    from nereid.llm.sequences import GeneratedSequence


class Holder(Protocol):
    """What holds a place in the memory: an answer, or one that is read again. `computed` of its tokens have their KV there.

    `adapter`: by which of the engine's adapters, see nereid.engines.adapters. `cache_salt`: with whom it shares the prefix cache,
    see nereid.llm.prefix_cache.
    """

    prompt: list[int]
    computed: int
    row: int
    adapter: int
    cache_salt: str


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens that a call appends to what a holder has computed, read as a prompt is; the last `keep` of them give logits.

    `states`: instead, all of them give their last hidden states.
    """

    holder: Holder
    tokens: list[int]
    keep: int = 1
    states: bool = False


class KvMemory(Protocol):
    """An engine's KV memory, its prefix cache included, and the sequences that hold places in it. Used by one thread."""

    decoding: list[GeneratedSequence]
    filling: list[Holder]

    @property
    def tokens(self) -> int:
        """Places that sequences may hold, all together."""

    @property
    def used_tokens(self) -> int:
        """Places that hold something needed."""

    @property
    def longest(self) -> int:
        """Tokens a sequence can have at most."""

    @property
    def held(self) -> list[Holder]: ...

    @property
    def sequences(self) -> list[GeneratedSequence]:
        """The answers among those that are held."""

    @property
    def prefix_block(self) -> int:
        """Tokens in a block of the prefix cache; 0 where there is none."""

    @property
    def prefix_hits(self) -> tuple[int, int]:
        """Prompt tokens looked for in the prefix cache, and found there, since the start."""

    def known(self, prompt: Sequence[int], adapter: int = 0, salt: str = "") -> int:
        """Tokens of the prompt that the prefix cache has, computed by this adapter, for those of this salt."""

    def begin(self, holder: Holder, slots: int, *, counted: bool = True, cached: bool = True) -> bool:
        """Lend a place for `slots` tokens, with what the prefix cache has of the prompt; False where there is no room now.

        Where `cached` is false, the prefix cache is not asked.
        """

    def grow(self, set_aside: Sequence[GeneratedSequence] = ()) -> list[GeneratedSequence]:
        """A free slot for every sequence that decodes, and for its draft; those that lost their place for it, youngest first.

        `set_aside` do not go on now: they need none, and lose theirs before all others.
        """

    def run(
        self, decoding: Sequence[GeneratedSequence], chunks: Sequence[Chunk]
    ) -> tuple[NDArray[np.float32] | None, list[NDArray[np.float32]]]:
        """The next token of each of `decoding`, which are those that were put first, or none, and the chunks.

        Logits: one row a sequence, and `keep` rows a chunk, or a hidden state for each of its tokens; valid until the next call.
        Nobody's `computed` is changed.
        """

    def join(self, sequence: GeneratedSequence) -> None:
        """Its prompt is read: from now on the sequence decodes with the others."""

    def put_first(self, sequences: Sequence[GeneratedSequence]) -> None:
        """Of those that decode, only these do in the next call."""

    def preempt(self, among: Sequence[GeneratedSequence] | None = None) -> GeneratedSequence:
        """The one of the least standing, of all or of those, gives its place up, and what is computed there with it."""

    def remember(self, holder: Holder) -> None:
        """Put what is computed of its prompt into the prefix cache."""

    def release(self, holder: Holder) -> None:
        """Take the place back."""


class RowEngine(Protocol):
    """An engine that owns its KV cache: `tokens` slots of one token each, divided into rows of equal capacity by `arrange`."""

    @property
    def tokens(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    def arrange(self, rows: int, capacity: int, lengths: Sequence[int] = ()) -> None:
        """Divide the memory again, with a scratch row beside; the first `lengths[i]` slots of row i keep their contents."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's first `length` slots over another row's."""

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` slots of two rows."""

    def read(self, row: int, start: int, end: int) -> NDArray:
        """The KV of slots start to end, a copy; the slots are its last axis but one."""

    def write(self, row: int, start: int, block: NDArray) -> None:
        """Put back what `read` gave."""

    def decode(self, tokens: Sequence[int], lengths: Sequence[int], adapters: Sequence[int] = ()) -> NDArray[np.float32]:
        """One token for each of the first rows, in slot `lengths[i]`; logits rows x vocabulary, valid until the next call.

        `adapters[i]` computes row i; none at all: the model itself does.
        """

    def extend(self, row: int, start: int, tokens: Sequence[int], keep: int = 1, adapter: int = 0) -> NDArray[np.float32]:
        """Append tokens to a row that holds `start`; logits of the last `keep` of them. One more slot must be free.

        They are valid until the row's next call.
        """

    def read_states(self, row: int, start: int, tokens: Sequence[int], adapter: int = 0) -> NDArray[np.float32]:
        """The same, but the last hidden states of all the tokens; only of a model whose export kept them."""


class BlockEngine(Protocol):
    """An engine that owns its KV cache as blocks of `block_size` tokens, of which the first is its own."""

    @property
    def blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    def run(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """One call for all pieces; the logits that they keep, piece after piece, valid until the next call."""

    def run_with_states(self, pieces: Sequence[Piece]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same, and the last hidden states of the pieces that want them; only of a model whose export kept them."""


class DraftEngine(Protocol):
    """A draft model's engine: a few rows, each followed by one call of its own."""

    @property
    def tokens(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    def arrange(self, rows: int, capacity: int) -> None:
        """Divide the memory into rows."""

    def extend(self, row: int, start: int, tokens: Sequence[int], keep: int = 1) -> NDArray[np.float32]:
        """Append tokens to a row that holds `start`; logits of the last `keep` of them. One more slot must be free."""


def longest_sequence(context_length: int, tokens: int) -> int:
    """Tokens of prompt and answer together: two fewer than a row has slots, for what an engine appends as padding."""
    return longest_row(context_length, tokens) - 2


def longest_row(context_length: int, tokens: int) -> int:
    """Slots of the longest row that is ever needed: no more than the context, and one fits in beside the scratch row."""
    return min(context_length, tokens // 2)
