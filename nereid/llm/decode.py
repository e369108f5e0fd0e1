"""One decode call for all rows, or, where few rows speculate, one call for each row and its draft; knows nothing of prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nereid.llm.drawing import draw
from nereid.llm.rows import KvRows
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.tick import Tick


@dataclass(slots=True, eq=False)
class Decode:
    """`speculation_rows`: several tokens of one row cost a call of their own, so speculation pays for few rows only."""

    rows: KvRows
    speculation_rows: int

    def run(self, tick: Tick) -> list[GeneratedSequence]:
        """A token, or several, for every decoding row; those that had to give up their rows for want of memory."""
        decoding = self.rows.decoding
        speculating = self._may_speculate() and not any(sequence.behind for sequence in decoding)
        for sequence in decoding:
            sequence.lookahead = sequence.meter.most if speculating and sequence.meter else 0
        preempted = self.rows.grow()
        if decoding:
            self._step(list(decoding), tick, speculating=speculating)
        return preempted

    def _step(self, rows: Sequence[GeneratedSequence], tick: Tick, *, speculating: bool) -> None:
        start = time.perf_counter()
        tick.decoded_rows = len(rows)
        drafts = [self._draft(sequence) for sequence in rows] if speculating else []
        if any(drafts):
            taken = [self._check(sequence, draft, tick) for sequence, draft in zip(rows, drafts, strict=True)]
        else:
            self._decode(rows, tick)
            taken = [0] * len(rows)
        tick.decode_seconds = seconds = time.perf_counter() - start
        for sequence, count in zip(rows, taken, strict=True):
            if sequence.meter is not None:
                sequence.meter.checked(count, seconds) if count else sequence.meter.plain(seconds)

    def _decode(self, rows: Sequence[GeneratedSequence], tick: Tick) -> None:
        """One token for every row: its next one, or, after a preemption, one it has written already.

        An answer's KV is computed again as it was the first time, token by token: read like a prompt it would be rounded
        differently, and the tokens after it could be others.
        """
        logits = self.rows.engine.decode([s.tokens[s.computed] for s in rows], [s.computed for s in rows])
        drawing = [index for index, sequence in enumerate(rows) if not sequence.behind]
        for sequence in rows:
            sequence.computed += 1
        if len(drawing) < len(rows):
            rows, logits = [rows[index] for index in drawing], logits[drawing]
        if rows:
            draw(rows, logits, tick)

    # --- speculative decoding ---

    def _may_speculate(self) -> bool:
        decoding = self.rows.decoding
        meters = [sequence.meter for sequence in decoding if sequence.meter is not None]
        return len(meters) == len(decoding) <= self.speculation_rows and any(meter.allowed() for meter in meters)

    @staticmethod
    def _draft(sequence: GeneratedSequence) -> list[int]:
        assert sequence.proposer is not None
        assert sequence.meter is not None
        most = min(sequence.meter.allowed(), sequence.remaining - 1)
        return sequence.proposer.propose(most, sequence.next_row()) if most > 0 else []

    def _check(self, sequence: GeneratedSequence, draft: list[int], tick: Tick) -> int:
        """One call for a row and its draft; how many tokens it gave."""
        tokens = [sequence.tokens[-1], *draft]
        logits = self.rows.engine.extend(sequence.row, sequence.computed, tokens, keep=len(tokens))
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
