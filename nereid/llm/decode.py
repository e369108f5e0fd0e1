"""What decodes in a tick: the next token of every sequence, or, where few speculate, each with its draft; knows no prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nereid.llm.drawing import draw
from nereid.llm.engine import Chunk, KvMemory
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.tick import Tick
from nereid.llm.yielding import Yielding


@dataclass(slots=True, eq=False)
class Decode:
    """`speculation_rows`: the tokens of a draft cost as much as rows of their own, so speculation pays for few rows only."""

    memory: KvMemory
    speculation_rows: int
    yielding: Yielding

    def plan(self) -> tuple[list[GeneratedSequence], list[Chunk]]:
        """The sequences of which each decodes its next token, or else every sequence's draft to be checked."""
        self.memory.put_first(self._moving())
        decoding = self._moving()
        drafts = [self._draft(sequence) for sequence in decoding] if any(s.lookahead for s in decoding) else []
        if not any(drafts):
            return decoding, []
        chunks = [
            Chunk(sequence, [sequence.tokens[-1], *draft], keep=1 + len(draft))
            for sequence, draft in zip(decoding, drafts, strict=True)
        ]
        return [], chunks

    def make_room(self) -> list[GeneratedSequence]:
        """A free slot for what the sequences will append; those that had to give up their places for want of memory."""
        moving = self._moving()
        speculating = self._may_speculate(moving) and not any(sequence.behind for sequence in moving)
        for sequence in self.memory.decoding:
            sequence.lookahead = 0
        for sequence in moving:
            # No more than may still be written: for a draft beyond that, there may never be room.
            sequence.lookahead = min(sequence.meter.most, sequence.remaining - 1) if speculating and sequence.meter else 0
        return self.memory.grow(self.yielding.set_aside)

    def _moving(self) -> list[GeneratedSequence]:
        return [sequence for sequence in self.memory.decoding if self.yielding.may_move(sequence)]

    def commit(self, rows: Sequence[GeneratedSequence], logits: NDArray[np.float32], tick: Tick) -> None:
        """One token for every row: its next one, or, after a preemption, one it has written already.

        An answer's KV is computed again as it was the first time, token by token: read like a prompt it would be rounded
        differently, and the tokens after it could be others.
        """
        drawing = [index for index, sequence in enumerate(rows) if not sequence.behind]
        for sequence in rows:
            sequence.computed += 1
        if len(drawing) < len(rows):
            rows, logits = [rows[index] for index in drawing], logits[drawing]
        if rows:
            draw(rows, logits, tick)

    def measured(self, taken: dict[int, int], seconds: float) -> None:
        """How long a tick took, and how many tokens each speculating sequence, by identity, has got in it."""
        for sequence in self._moving():
            if sequence.meter is not None:
                count = taken.get(id(sequence), 0)
                sequence.meter.checked(count, seconds) if count else sequence.meter.plain(seconds)

    # --- speculative decoding ---

    def _may_speculate(self, decoding: Sequence[GeneratedSequence]) -> bool:
        meters = [sequence.meter for sequence in decoding if sequence.meter is not None]
        return len(meters) == len(decoding) <= self.speculation_rows and any(meter.allowed() for meter in meters)

    @staticmethod
    def _draft(sequence: GeneratedSequence) -> list[int]:
        assert sequence.proposer is not None
        assert sequence.meter is not None
        most = min(sequence.meter.allowed(), sequence.remaining - 1)
        return sequence.proposer.propose(most, sequence.next_row()) if most > 0 else []

    @staticmethod
    def check(chunk: Chunk, logits: NDArray[np.float32], tick: Tick) -> int:
        """Draw where the draft was; how many tokens it gave."""
        sequence, draft = chunk.holder, chunk.tokens[1:]
        assert isinstance(sequence, GeneratedSequence)
        taken = 0
        for index, proposed in enumerate([*draft, -1]):
            (token,) = draw([sequence], logits[index : index + 1], tick)
            taken += 1
            if sequence.finished or token != proposed:
                break
        sequence.computed += taken
        tick.draft_tokens += len(draft)
        tick.accepted_tokens += taken - 1
        return taken
