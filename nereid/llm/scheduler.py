"""What happens in one tick of a language model's loop, and in which order; knows no requests.

Who holds which place in the KV memory is in nereid.llm.rows and nereid.llm.blocks, admission and the reading of prompts in
nereid.llm.prefill, the tokens of answers in nereid.llm.decode, prefill of finished answers in nereid.llm.answer_prefill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nereid.llm.answer_prefill import AnswerPrefill
from nereid.llm.decode import Decode
from nereid.llm.engine import KvMemory
from nereid.llm.prefill import Prefill
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.tick import Tick
from nereid.llm.yielding import Yielding


@dataclass(slots=True, eq=False)
class LlmScheduler:
    """Moves sequences on, tick by tick; used by one thread.

    `prefill_chunk` bounds the prompt tokens of a tick in which others decode. When memory runs out the sequence of the
    least standing, a batch's or the youngest, goes back to the queue and is computed again later, by the same calls as before.
    What yields waits in its place while others are inside.
    """

    memory: KvMemory
    prefill_chunk: int = 128
    idle_prefill_chunk: int = 512
    speculation_rows: int = 2
    ticked: Callable[[Tick], None] = lambda tick: None
    clock: Callable[[], float] = time.monotonic
    _yielding: Yielding = field(init=False)
    _prefill: Prefill = field(init=False)
    _decode: Decode = field(init=False)
    _answer_prefill: AnswerPrefill = field(init=False)

    def __post_init__(self) -> None:
        self._yielding = Yielding(self.memory, self.clock)
        self._prefill = Prefill(self.memory, self.prefill_chunk, self.idle_prefill_chunk, self._yielding)
        self._decode = Decode(self.memory, self.speculation_rows, self._yielding)
        self._answer_prefill = AnswerPrefill(self.memory)

    @property
    def longest(self) -> int:
        """Tokens a sequence can have at most."""
        return self.memory.longest

    @property
    def idle(self) -> bool:
        return not (self._prefill.waiting or self.memory.held)

    def advance(self, sequences: Sequence[GeneratedSequence]) -> None:
        """One tick for the unfinished of `sequences`; those that are missing since the last tick are let go of."""
        tick = Tick()
        self._answer_prefill.stop()
        self._let_go({id(sequence) for sequence in sequences})
        self._prefill.enqueue(sequences)
        self._yielding.look(self._prefill.waiting)
        preempted = self._decode.make_room()
        self._prefill.take_back(preempted)
        tick.preempted = len(preempted)
        self._step(tick)
        for sequence in [s for s in self.memory.decoding if s.finished]:
            self.memory.release(sequence)
            if not sequence.yields:  # a batch's: no conversation goes on from it
                self._answer_prefill.note(sequence)
        self.ticked(tick)

    def rest(self) -> bool:
        """A chunk of the work that waits until there is nothing else to do; False if none is left."""
        if not self._answer_prefill.reading:
            self._let_go(set())
        return self._answer_prefill.step()

    def _step(self, tick: Tick) -> None:
        """Plan, call, commit: the tokens of answers and the chunks of prompts, as one call where the engine can."""
        start = time.perf_counter()
        chunks = self._prefill.plan(tick)
        rows, drafts = self._decode.plan()
        if not (rows or drafts or chunks):
            return
        logits, read = self.memory.run(rows, [*drafts, *chunks])
        tick.decoded_rows = len(rows) + len(drafts)
        taken = {id(draft.holder): self._decode.check(draft, read[index], tick) for index, draft in enumerate(drafts)}
        if logits is not None:
            self._decode.commit(rows, logits, tick)
        if tick.decoded_rows and not chunks:  # a call with chunks says nothing of what decoding costs
            tick.decode_seconds = time.perf_counter() - start
            self._decode.measured(taken, tick.decode_seconds)
        self._prefill.commit(chunks, read[len(drafts) :], tick)

    def _let_go(self, alive: set[int]) -> None:
        """Drop the sequences that are not among `alive` (by identity), and those that have ended."""
        self._prefill.keep(alive)
        for holder in self.memory.held:
            if id(holder) not in alive or (isinstance(holder, GeneratedSequence) and holder.finished):
                self.memory.release(holder)
