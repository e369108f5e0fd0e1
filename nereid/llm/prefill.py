"""Who waits for a place in the memory, and what is read of prompts in a tick; knows nothing of decoding.

Prompts are read one after the other: the best priority first, one better for every AGING_SECONDS since it came, of equal ones
first come, first served. A preempted sequence keeps its place among its equals. A prompt that has been begun is read to its end,
but for one that yields (nereid.llm.yielding).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.flow.tickets import USUAL_PRIORITY
from nereid.llm.drawing import draw
from nereid.llm.engine import Chunk, Holder, KvMemory
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.tick import Tick
from nereid.llm.yielding import Yielding

EXPECTED_TOKENS = 128
"""Admission looks this far ahead; a longer answer asks for more memory while it is written."""


@dataclass(slots=True, eq=False)
class Prefill:
    """`chunk` bounds the prompt tokens of a tick in which others decode, and with it the pause in their answers.

    It bounds those of prompts that yield, too, whoever decodes: so long waits who comes and would go before them.
    """

    memory: KvMemory
    chunk: int
    idle_chunk: int
    yielding: Yielding
    waiting: deque[GeneratedSequence] = field(default_factory=deque)

    def enqueue(self, sequences: Iterable[GeneratedSequence]) -> None:
        """Those that neither wait nor hold a place wait from now on."""
        known = {id(sequence) for sequence in (*self.waiting, *self.memory.held)}
        self.waiting.extend(s for s in sequences if id(s) not in known and not s.finished)

    def take_back(self, preempted: Sequence[GeneratedSequence]) -> None:
        """They lost their places: the oldest of them, which lost its place last, is the next to get one."""
        self.waiting.extendleft(preempted)

    def keep(self, alive: set[int]) -> None:
        """Forget those in the queue that are not among `alive` (by identity)."""
        self.waiting = deque(sequence for sequence in self.waiting if id(sequence) in alive)

    def plan(self, tick: Tick) -> list[Chunk]:
        """What is read in this tick: chunks of prompts, the last of which may go on in the next."""
        chunks: list[Chunk] = []
        filling = [holder for holder in self.memory.filling if self.yielding.may_move(holder)]
        read = 0
        while True:
            waiting = None if len(chunks) < len(filling) else self._first_waiting()
            ahead: Holder | None = filling[len(chunks)] if len(chunks) < len(filling) else waiting
            if ahead is None or (budget := self._most(ahead) - read) <= 0:
                return chunks
            if waiting is not None:
                if not self._admit(waiting, filling, tick):
                    return chunks
                filling.append(waiting)
            chunks.append(_chunk(ahead, budget))
            read += len(chunks[-1].tokens)
            if ahead.computed + len(chunks[-1].tokens) < len(ahead.prompt):
                return chunks  # the next prompt must not be read before this one

    def _most(self, holder: Holder) -> int:
        """Prompt tokens of a tick in which this one is read."""
        priority = holder.priority if isinstance(holder, GeneratedSequence) else USUAL_PRIORITY
        moving = (sequence for sequence in self.memory.decoding if self.yielding.may_move(sequence))
        held_up = any(sequence.priority <= priority for sequence in moving)
        return self.chunk if held_up or priority > USUAL_PRIORITY else self.idle_chunk

    def _first_waiting(self) -> GeneratedSequence | None:
        moving = (sequence for sequence in self.waiting if self.yielding.may_move(sequence))
        return min(moving, key=lambda sequence: sequence.standing, default=None)

    def commit(self, chunks: Sequence[Chunk], logits: Sequence[NDArray[np.float32]], tick: Tick) -> None:
        """After a prompt's last chunk the answer's first token is drawn, and the sequence joins those that decode.

        One that is embedded leaves instead, and with it others may move: all of them must have what is computed by then.
        """
        ended: list[tuple[GeneratedSequence, NDArray[np.float32]]] = []
        for chunk, values in zip(chunks, logits, strict=True):
            sequence = chunk.holder
            assert isinstance(sequence, GeneratedSequence)
            if sequence.mean is not None:
                sequence.mean.take(sequence.computed, values)
            elif sequence.scored_prompt is not None and sequence.must_score:
                sequence.scored_prompt.take(sequence.computed, values)
            sequence.computed += len(chunk.tokens)
            tick.prompt_tokens += len(chunk.tokens)
            if sequence.computed == len(sequence.prompt):
                ended.append((sequence, values))
        for sequence, values in ended:
            if sequence.mean is not None:
                sequence.end_embedded()
                self.memory.release(sequence)
                continue
            self.memory.join(sequence)
            if not sequence.max_tokens:
                sequence.end_unanswered()
            elif not sequence.written:
                draw([sequence], values[-1:], tick)

    def _admit(self, sequence: GeneratedSequence, filling: Sequence[Holder], tick: Tick) -> bool:
        """Give a waiting sequence a place, if there is room for it and for the beginning of its answer.

        Those that wait because they yield give theirs up for it, the youngest first.
        """
        cached = not sequence.must_read_all
        if cached and self._is_being_read(sequence, filling):
            return False
        ahead = min(sequence.remaining, EXPECTED_TOKENS)
        slots = min(len(sequence.tokens) + ahead, self.memory.longest) + 2
        while not self.memory.begin(sequence, slots, cached=cached):
            set_aside = self.yielding.set_aside
            if not set_aside or sequence.yields:
                return False
            self.take_back([self.memory.preempt(set_aside)])
            tick.preempted += 1
        self.waiting.remove(sequence)
        if not sequence.written:
            sequence.cached_tokens = sequence.computed
        return True

    def _is_being_read(self, waiting: GeneratedSequence, filling: Sequence[Holder]) -> bool:
        """Whether another prompt that is being read now begins as this one does: its blocks are worth waiting for."""
        block = self.memory.prefix_block
        if not block:
            return False
        # One token is left to compute logits from, as in the cache.
        prompt, adapter, salt = waiting.prompt, waiting.adapter, waiting.cache_salt
        shared = [holder for holder in filling if (holder.adapter, holder.cache_salt) == (adapter, salt)]
        read = [holder.prompt for holder in shared if not _is_embedded(holder)]
        common = max((_common(other, prompt[:-1]) // block * block for other in read), default=0)
        return common > 0 and common > self.memory.known(prompt, adapter, salt)


def _chunk(holder: Holder, budget: int) -> Chunk:
    """What is read next of a prompt; of one that is scored, no more than its logits may have room for."""
    if _is_embedded(holder):
        return Chunk(holder, holder.prompt[holder.computed : holder.computed + budget], states=True)
    scores = holder.scored_prompt if isinstance(holder, GeneratedSequence) and holder.must_score else None
    count = budget if scores is None else min(budget, scores.chunk)
    tokens = holder.prompt[holder.computed : holder.computed + count]
    return Chunk(holder, tokens, keep=1 if scores is None else len(tokens))


def _is_embedded(holder: Holder) -> bool:
    """Whether only the mean of its prompt is wanted, so that nothing of it is remembered."""
    return isinstance(holder, GeneratedSequence) and holder.mean is not None


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next(
        (place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), min(len(first), len(second))
    )
