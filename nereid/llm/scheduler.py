"""What runs next in a language model's loop: admission, chunks of prompts, one decode call for all rows; knows no requests.

Rows 0 to n-1 of the engine decode, row n is being prefilled. When memory runs out the youngest sequence goes back to the
queue and is computed again later, by the same calls as before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.llm.engine import CausalEngine, longest_row
from nereid.llm.prefix_cache import BLOCK, PrefixCache
from nereid.llm.sampling import sample
from nereid.llm.sequences import GeneratedSequence

SMALLEST_CAPACITY = 256
REST_CHUNK = 2 * BLOCK
"""Tokens that are read again in one call: a new request waits for that call."""
REMEMBERED_ANSWERS = 8
"""How many of the newest answers wait to be read again for the prefix cache."""
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
class _Rereading:
    """A finished answer, with its prompt, whose KV is being computed again in row 0."""

    tokens: list[int]
    computed: int


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
    _answers: deque[list[int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_ANSWERS))
    _rereading: _Rereading | None = None

    @property
    def longest(self) -> int:
        """Tokens a sequence can have at most: two fewer than a row has places, for what an engine appends as padding."""
        return self._largest_capacity - 2

    @property
    def _largest_capacity(self) -> int:
        return longest_row(self.context_length, self.engine.tokens)

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
        self._stop_rereading()
        self._let_go({id(sequence) for sequence in sequences})
        known = {id(sequence) for sequence in (*self._waiting, *self._held())}
        self._waiting.extend(s for s in sequences if id(s) not in known and not s.finished)
        self._fill_rows()
        if self._decoding:
            self._decode_all()
        for sequence in [s for s in self._decoding if s.finished]:
            self._release(sequence)
            if self.cache.budget and len(sequence.tokens) // BLOCK > len(sequence.prompt) // BLOCK:
                self._answers.append(list(sequence.tokens))
        self.ticked(self._tick)

    def _let_go(self, alive: set[int]) -> None:
        """Drop the sequences that are not among `alive` (by identity)."""
        self._waiting = deque(sequence for sequence in self._waiting if id(sequence) in alive)
        for sequence in self._held():
            if id(sequence) not in alive or sequence.finished:
                self._release(sequence)

    # --- answers, once there is nothing else to do ---

    def rest(self) -> bool:
        """Compute a chunk of a finished answer's KV again, for the next turn of its conversation; False if none is left.

        The KV that was computed token by token is rounded differently from a prompt's: only what was computed like a prompt
        lets a hit of the prefix cache give the very tokens that a miss gives.
        """
        self._let_go(set())
        if self._rereading is None and self._answers:
            tokens = self._answers.pop()
            self._make_room(len(tokens) + 2, 1)
            self._rereading = _Rereading(tokens, self._restore(0, tokens, counted=False))
        reading = self._rereading
        if reading is None:
            return False
        chunk = reading.tokens[reading.computed : reading.computed + REST_CHUNK]
        self.engine.extend(0, reading.computed, chunk)
        reading.computed += len(chunk)
        if reading.computed == len(reading.tokens):
            self._stop_rereading()
        return True

    def _stop_rereading(self) -> None:
        """Keep what is computed; what is left of the answer waits for the next rest."""
        reading, self._rereading = self._rereading, None
        if reading is not None:
            self._remember(0, reading.tokens[: reading.computed])
            if reading.computed < len(reading.tokens):
                self._answers.append(reading.tokens)

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
        sequence.row = len(self._decoding)
        sequence.computed = self._restore(sequence.row, sequence.prompt)
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
            chunk = sequence.prompt[sequence.computed : sequence.computed + budget]
            logits = self.engine.extend(sequence.row, sequence.computed, chunk)
            sequence.computed += len(chunk)
            budget -= len(chunk)
            self._tick.prompt_tokens += len(chunk)
            if sequence.computed < len(sequence.prompt):
                continue
            self._remember(sequence.row, sequence.prompt)
            self._filling = None
            self._decoding.append(sequence)
            if not sequence.written:
                self._accept(sequence, logits)
                if sequence.finished:
                    self._release(sequence)

    def _restore(self, row: int, tokens: Sequence[int], *, counted: bool = True) -> int:
        """Fill the row with what the prefix cache has of `tokens`; how many places that are."""
        blocks = self.cache.match(tokens, counted=counted)
        for number, block in enumerate(blocks):
            self.engine.write(row, number * BLOCK, block.values)
        return len(blocks) * BLOCK

    def _remember(self, row: int, tokens: Sequence[int]) -> None:
        self.cache.insert(tokens, lambda start, end: self.engine.read(row, start, end))

    # --- answers ---

    def _decode_all(self) -> None:
        guessing = self._may_guess() and not any(sequence.behind for sequence in self._decoding)
        for sequence in self._decoding:
            sequence.lookahead = sequence.meter.most if guessing and sequence.meter else 0
        self._grow()
        rows = list(self._decoding)
        if not rows:
            return
        start = time.perf_counter()
        self._tick.decoded_rows = len(rows)
        guesses = [self._guess(sequence) for sequence in rows] if guessing else []
        if any(guesses):
            taken = [self._check(sequence, guess) for sequence, guess in zip(rows, guesses, strict=True)]
        else:
            self._decode(rows)
            taken = [0] * len(rows)
        self._tick.decode_seconds = seconds = time.perf_counter() - start
        for sequence, count in zip(rows, taken, strict=True):
            if sequence.meter is not None:
                sequence.meter.guessed(count, seconds) if count else sequence.meter.plain(seconds)

    def _decode(self, rows: Sequence[GeneratedSequence]) -> None:
        """One token for every row: its next one, or, after a preemption, one it has written already.

        An answer's KV is computed again as it was the first time, token by token: read like a prompt it would be rounded
        differently, and the tokens after it could be others.
        """
        logits = self.engine.decode([s.tokens[s.computed] for s in rows], [s.computed for s in rows])
        drawing = [place for place, sequence in enumerate(rows) if not sequence.behind]
        for sequence in rows:
            sequence.computed += 1
        if len(drawing) < len(rows):
            rows, logits = [rows[place] for place in drawing], logits[drawing]
        if not rows:
            return
        self._set_aside(rows, logits)
        for sequence, token in zip(rows, sample(logits, [s.next_row() for s in rows]), strict=True):
            self._take(sequence, int(token))

    def _may_guess(self) -> bool:
        """Several tokens of one row cost a call of their own, so guesses pay for few rows only."""
        meters = [sequence.meter for sequence in self._decoding if sequence.meter is not None]
        return len(meters) == len(self._decoding) <= self.guess_rows and any(meter.allowed() for meter in meters)

    def _guess(self, sequence: GeneratedSequence) -> list[int]:
        assert sequence.guesser is not None
        assert sequence.meter is not None
        most = min(sequence.meter.allowed(), sequence.remaining - 1)
        return sequence.guesser.propose(most, sequence.next_row()) if most > 0 else []

    def _check(self, sequence: GeneratedSequence, guess: list[int]) -> int:
        """One call for a row and its guess; how many tokens it gave."""
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
        return taken

    def _accept(self, sequence: GeneratedSequence, logits: NDArray[np.float32]) -> int:
        self._set_aside([sequence], logits)
        token = int(sample(logits, [sequence.next_row()])[0])
        self._take(sequence, token)
        return token

    @staticmethod
    def _set_aside(rows: Sequence[GeneratedSequence], logits: NDArray[np.float32]) -> None:
        """Set aside the untouched logits of rows that must report probabilities."""
        for sequence, values in zip(rows, logits, strict=True):
            if sequence.scored:
                sequence.raw_logits = values.copy()

    def _take(self, sequence: GeneratedSequence, token: int) -> None:
        before = len(sequence.written)
        sequence.take(token)
        self._tick.new_tokens += len(sequence.written) - before
