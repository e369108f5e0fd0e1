"""What runs next in a language model's loop: admission, chunks of prompts, one decode call for all rows; knows no requests.

Rows 0 to n-1 of the engine decode, row n is being prefilled. When memory runs out the youngest sequence goes back to the
queue and is computed again later.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.runtime.llm.engine import CausalEngine
from nereid.runtime.llm.prefix_cache import BLOCK, PrefixCache
from nereid.runtime.llm.sampling import sample
from nereid.runtime.llm.sequences import GeneratedSequence

SMALLEST_CAPACITY = 256
EXPECTED_TOKENS = 128
"""Admission looks this far ahead; a longer answer makes the rows grow while it is written."""


@dataclass(slots=True)
class Tick:
    """What one tick did, for the metrics."""

    decoded_rows: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    preempted: int = 0
    decode_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class LlmScheduler:
    """Moves sequences on, tick by tick; used by one thread.

    `prefill_chunk` bounds the prompt tokens of a tick in which others decode, and with it the pause in their answers.
    """

    engine: CausalEngine
    cache: PrefixCache
    max_rows: int
    context_length: int
    prefill_chunk: int = 128
    idle_prefill_chunk: int = 512
    guess_rows: int = 2
    ticked: Callable[[Tick], None] = lambda tick: None
    _waiting: deque[GeneratedSequence] = field(default_factory=deque)
    _decoding: list[GeneratedSequence] = field(default_factory=list)
    _filling: GeneratedSequence | None = None
    _tick: Tick = field(default_factory=Tick)

    @property
    def longest(self) -> int:
        """Tokens a sequence can have at most: two fewer than a row has places, for what an engine appends as padding."""
        return self._largest_capacity - 2

    @property
    def _largest_capacity(self) -> int:
        """A row is never longer than the model's context, and there is always room for one beside the scratch row."""
        return min(self.context_length, self.engine.tokens // 2)

    @property
    def used_tokens(self) -> int:
        """Places of the KV memory that hold something needed."""
        return sum(sequence.computed for sequence in self._held())

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._decoding or self._filling)

    def advance(self, sequences: Sequence[GeneratedSequence]) -> None:
        """One tick for the unfinished of `sequences`; those that are missing since the last tick are let go of."""
        self._tick = Tick()
        alive = {id(sequence) for sequence in sequences}
        self._waiting = deque(sequence for sequence in self._waiting if id(sequence) in alive)
        for sequence in self._held():
            if id(sequence) not in alive or sequence.finished:
                self._release(sequence)
        known = {id(sequence) for sequence in (*self._waiting, *self._held())}
        self._waiting.extend(s for s in sequences if id(s) not in known and not s.finished)
        self._fill_rows()
        if self._decoding:
            self._decode_all()
        for sequence in [s for s in self._decoding if s.finished]:
            self._release(sequence)
        self.ticked(self._tick)

    # --- memory ---

    def _held(self) -> list[GeneratedSequence]:
        return [*self._decoding, *([self._filling] if self._filling else [])]

    def _admit(self) -> None:
        """Give the next waiting sequence a row, its known prefix filled in."""
        if self._filling is not None or not self._waiting:
            return
        sequence = self._waiting[0]
        ahead = min(sequence.remaining, EXPECTED_TOKENS)
        wanted = min(len(sequence.tokens) + ahead, self.longest) + 2
        if not self._make_room(wanted, len(self._held()) + 1):
            return
        self._waiting.popleft()
        self._filling = sequence
        sequence.row, sequence.computed = len(self._decoding), 0
        for block in self.cache.match(sequence.tokens[: sequence.to_compute]):
            self.engine.write(sequence.row, sequence.computed, block.values)
            sequence.computed += BLOCK
        if not sequence.written:
            sequence.cached_tokens = sequence.computed

    def _make_room(self, places: int, rows: int) -> bool:
        """Rows of at least `places`; False where `rows` of them do not fit."""
        capacity = self.engine.capacity if self._held() else SMALLEST_CAPACITY
        while capacity < places:
            capacity *= 2
        capacity = min(capacity, self._largest_capacity)
        fitting = min(self.max_rows, self.engine.tokens // capacity - 1)
        if rows > fitting:
            return False
        if capacity != self.engine.capacity or fitting != self.engine.rows:
            self.engine.arrange(fitting, capacity, [sequence.computed for sequence in self._held()])
        return True

    def _grow(self) -> None:
        """Before a decode call: every row must have a free place, or the youngest sequences must wait."""
        while self._decoding:
            places = max(s.computed + 2 + s.lookahead for s in self._held())
            if places <= self.engine.capacity or self._make_room(places, len(self._held())):
                return
            self._preempt(max(self._held(), key=lambda s: s.admission))

    def _preempt(self, sequence: GeneratedSequence) -> None:
        self._release(sequence)
        sequence.computed = 0
        self._waiting.appendleft(sequence)
        self._tick.preempted += 1

    def _release(self, sequence: GeneratedSequence) -> None:
        """Free a row; the last decoding row and the one being prefilled move up."""
        if sequence is self._filling:
            self._filling = None
        else:
            hole = sequence.row
            last = self._decoding[-1]
            if last is not sequence:
                self.engine.move(last.row, hole, last.computed)
                last.row = hole
                self._decoding[hole] = last
            self._decoding.pop()
            if self._filling is not None:
                self.engine.move(self._filling.row, len(self._decoding), self._filling.computed)
                self._filling.row = len(self._decoding)
        sequence.row = -1

    # --- prompts ---

    def _fill_rows(self) -> None:
        """Prefill within this tick's budget, first come, first served."""
        budget = self.prefill_chunk if self._decoding else self.idle_prefill_chunk
        while budget > 0:
            self._admit()
            sequence = self._filling
            if sequence is None:
                return
            chunk = sequence.tokens[sequence.computed : min(sequence.to_compute, sequence.computed + budget)]
            logits = self.engine.extend(sequence.row, sequence.computed, chunk)
            sequence.computed += len(chunk)
            budget -= len(chunk)
            self._tick.prompt_tokens += len(chunk)
            if sequence.computed < sequence.to_compute:
                continue
            self._remember(sequence, sequence.prompt)
            self._filling = None
            self._decoding.append(sequence)
            if not sequence.written:
                self._accept(sequence, logits)
                if sequence.finished:
                    self._release(sequence)

    def _remember(self, sequence: GeneratedSequence, tokens: Sequence[int]) -> None:
        row = sequence.row
        self.cache.insert(tokens, lambda start, end: self.engine.read(row, start, end))

    # --- answers ---

    def _decode_all(self) -> None:
        for sequence in self._decoding:
            sequence.lookahead = 0
        guessing = len(self._decoding) <= self.guess_rows and all(s.lookup is not None for s in self._decoding)
        if guessing:
            for sequence in self._decoding:
                sequence.lookahead = sequence.meter.most if sequence.meter else 0
        self._grow()
        rows = list(self._decoding)
        if not rows:
            return
        start = time.perf_counter()
        self._tick.decoded_rows = len(rows)
        if guessing:
            for sequence in rows:
                self._guess(sequence)
        else:
            logits = self.engine.decode([s.tokens[-1] for s in rows], [s.computed for s in rows])
            for sequence in rows:
                sequence.computed += 1
            self._set_aside(rows, logits)
            tokens = sample(logits, [sequence.next_row() for sequence in rows])
            for sequence, token in zip(rows, tokens, strict=True):
                self._take(sequence, int(token))
        self._tick.decode_seconds = time.perf_counter() - start

    def _guess(self, sequence: GeneratedSequence) -> None:
        """One step of one sequence, with a guess where that pays."""
        assert sequence.lookup is not None
        assert sequence.meter is not None
        start = time.perf_counter()
        most = min(sequence.meter.allowed(), sequence.remaining - 1)
        guess = sequence.lookup.propose(most) if most > 0 else []
        logits = self.engine.extend(sequence.row, sequence.computed, [sequence.tokens[-1], *guess], keep=1 + len(guess))
        taken = 0
        for place, guessed in enumerate([*guess, -1]):
            token = self._accept(sequence, logits[place : place + 1])
            taken += 1
            if sequence.finished or token != guessed:
                break
        sequence.computed += taken
        self._tick.guessed_tokens += len(guess)
        self._tick.accepted_tokens += taken - 1
        seconds = time.perf_counter() - start
        if guess:
            sequence.meter.guessed(taken, seconds)
        else:
            sequence.meter.plain(seconds)

    def _accept(self, sequence: GeneratedSequence, logits: NDArray[np.float32]) -> int:
        self._set_aside([sequence], logits)
        token = int(sample(logits, [sequence.next_row()])[0])
        self._take(sequence, token)
        return token

    @staticmethod
    def _set_aside(rows: Sequence[GeneratedSequence], logits: NDArray[np.float32]) -> None:
        """Set aside the untouched logits of rows that must report probabilities."""
        for sequence, values in zip(rows, logits, strict=True):
            if sequence.logprobs is not None:
                sequence.raw_logits = values.copy()

    def _take(self, sequence: GeneratedSequence, token: int) -> None:
        sequence.take(token)
        self._tick.new_tokens += 1
