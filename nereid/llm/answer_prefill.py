"""Prefill of finished answers into the prefix cache, for the next turn of their conversations, while nothing else is to be done.

The KV that was computed token by token is rounded differently from a prompt's: only what was computed like a prompt lets a hit
of the prefix cache give the very tokens that a miss gives.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from nereid.llm.engine import Chunk, KvMemory
from nereid.llm.sequences import GeneratedSequence

REST_CHUNK = 32
"""Tokens of one call: a new request waits for that call."""
REMEMBERED_ANSWERS = 8
"""How many of the newest answers wait for their prefill."""


@dataclass(slots=True, eq=False)
class _Reading:
    """A finished answer behind its prompt, whose KV is being computed again as a prompt's."""

    prompt: list[int]
    adapter: int
    cache_salt: str
    computed: int = 0
    row: int = -1


@dataclass(slots=True, eq=False)
class AnswerPrefill:
    """The newest answer first: its conversation is the likeliest to go on."""

    memory: KvMemory
    _answers: deque[tuple[list[int], int, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_ANSWERS))
    _current: _Reading | None = None

    @property
    def reading(self) -> bool:
        """Whether an answer holds a place in the memory."""
        return self._current is not None

    def note(self, sequence: GeneratedSequence) -> None:
        """An answer has ended; it is worth a prefill where it fills a block that the prompt alone does not."""
        block = self.memory.prefix_block
        if block and len(sequence.tokens) // block > len(sequence.prompt) // block:
            self._answers.append((list(sequence.tokens), sequence.adapter, sequence.cache_salt))

    def step(self) -> bool:
        """Compute a chunk, while no sequence holds a place; False if nothing is left."""
        if self._current is None and self._answers:
            reading = _Reading(*self._answers.pop())
            if self.memory.begin(reading, len(reading.prompt) + 2, counted=False):
                self._current = reading
        current = self._current
        if current is None:
            return False
        chunk = current.prompt[current.computed : current.computed + REST_CHUNK]
        self.memory.run([], [Chunk(current, chunk)])
        current.computed += len(chunk)
        if current.computed == len(current.prompt):
            self.stop()
        return True

    def stop(self) -> None:
        """Keep what is computed; what is left of the answer waits for the next rest."""
        current, self._current = self._current, None
        if current is not None:
            self.memory.remember(current)
            self.memory.release(current)
            if current.computed < len(current.prompt):
                self._answers.append((current.prompt, current.adapter, current.cache_salt))
