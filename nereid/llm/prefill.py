"""Who waits for a row, and the reading of prompts in chunks; knows nothing of decoding.

One prompt is read at a time, first come, first served. A preempted sequence waits in front of all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nereid.llm.drawing import draw
from nereid.llm.rows import KvRows
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.tick import Tick

EXPECTED_TOKENS = 128
"""Admission looks this far ahead; a longer answer makes the rows grow while it is written."""


@dataclass(slots=True, eq=False)
class Prefill:
    """`chunk` bounds the prompt tokens of a tick in which others decode, and with it the pause in their answers."""

    rows: KvRows
    chunk: int
    idle_chunk: int
    waiting: deque[GeneratedSequence] = field(default_factory=deque)

    def enqueue(self, sequences: Iterable[GeneratedSequence]) -> None:
        """Those that are neither waiting nor holding a row wait from now on."""
        known = {id(sequence) for sequence in (*self.waiting, *self.rows.held)}
        self.waiting.extend(s for s in sequences if id(s) not in known and not s.finished)

    def take_back(self, preempted: Sequence[GeneratedSequence]) -> None:
        """They lost their rows: the oldest of them, which lost its row last, is the next to get one."""
        self.waiting.extendleft(preempted)

    def keep(self, alive: set[int]) -> None:
        """Forget those in the queue that are not among `alive` (by identity)."""
        self.waiting = deque(sequence for sequence in self.waiting if id(sequence) in alive)

    def run(self, tick: Tick) -> None:
        """Read prompts within this tick's budget."""
        budget = self.chunk if self.rows.decoding else self.idle_chunk
        while budget > 0:
            self._admit()
            sequence = self.rows.filling
            if sequence is None:
                return
            budget -= self._read(sequence, budget, tick)

    def _admit(self) -> None:
        """Give the next waiting sequence a row, if there is room for it and for the beginning of its answer."""
        rows = self.rows
        if rows.filling is not None or not self.waiting:
            return
        sequence = self.waiting[0]
        ahead = min(sequence.remaining, EXPECTED_TOKENS)
        wanted = min(len(sequence.tokens) + ahead, rows.longest) + 2
        if rows.make_room(wanted, len(rows.held) + 1):
            self.waiting.popleft()
            rows.begin(sequence)

    def _read(self, sequence: GeneratedSequence, most: int, tick: Tick) -> int:
        """Read a chunk of a prompt; after its last one the answer's first token is drawn, and the row joins the others."""
        rows = self.rows
        chunk = sequence.prompt[sequence.computed : sequence.computed + most]
        logits = rows.engine.extend(sequence.row, sequence.computed, chunk)
        sequence.computed += len(chunk)
        tick.prompt_tokens += len(chunk)
        if sequence.computed == len(sequence.prompt):
            rows.join(sequence)
            if not sequence.written:
                draw([sequence], logits, tick)
                if sequence.finished:
                    rows.release(sequence)
        return len(chunk)
