"""Prefill of finished answers into the prefix cache, for the next turn of their conversations, while nothing else is to be done.

The KV that was computed token by token is rounded differently from a prompt's: only what was computed like a prompt lets a hit
of the prefix cache give the very tokens that a miss gives.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from nereid.llm.prefix_cache import BLOCK
from nereid.llm.rows import KvRows
from nereid.llm.sequences import GeneratedSequence

REST_CHUNK = 2 * BLOCK
"""Tokens of one call: a new request waits for that call."""
REMEMBERED_ANSWERS = 8
"""How many of the newest answers wait for their prefill."""


@dataclass(slots=True, eq=False)
class _Prefill:
    """A finished answer, with its prompt, whose KV is being computed again in row 0."""

    tokens: list[int]
    computed: int


@dataclass(slots=True, eq=False)
class AnswerPrefill:
    """The newest answer first: its conversation is the likeliest to go on."""

    rows: KvRows
    _answers: deque[list[int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_ANSWERS))
    _current: _Prefill | None = None

    def note(self, sequence: GeneratedSequence) -> None:
        """An answer has ended; it is worth a prefill where it fills a block that the prompt alone does not."""
        if self.rows.cache.budget and len(sequence.tokens) // BLOCK > len(sequence.prompt) // BLOCK:
            self._answers.append(list(sequence.tokens))

    def step(self) -> bool:
        """Compute a chunk, while no row is held; False if nothing is left."""
        if self._current is None and self._answers:
            tokens = self._answers.pop()
            self.rows.make_room(len(tokens) + 2, 1)
            self._current = _Prefill(tokens, self.rows.restore(0, tokens, counted=False))
        current = self._current
        if current is None:
            return False
        chunk = current.tokens[current.computed : current.computed + REST_CHUNK]
        self.rows.engine.extend(0, current.computed, chunk)
        current.computed += len(chunk)
        if current.computed == len(current.tokens):
            self.stop()
        return True

    def stop(self) -> None:
        """Keep what is computed; what is left of the answer waits for the next rest."""
        current, self._current = self._current, None
        if current is not None:
            self.rows.remember(0, current.tokens[: current.computed])
            if current.computed < len(current.tokens):
                self._answers.append(current.tokens)
