"""What happens in one tick of a language model's loop, and in which order; knows no requests.

Who holds which row is in nereid.llm.rows, admission and the reading of prompts in nereid.llm.prefill, the tokens of answers in
nereid.llm.decode, prefill of finished answers for the prefix cache in nereid.llm.answer_prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nereid.llm.answer_prefill import AnswerPrefill
from nereid.llm.decode import Decode
from nereid.llm.engine import CausalEngine
from nereid.llm.prefill import Prefill
from nereid.llm.prefix_cache import PrefixCache
from nereid.llm.rows import KvRows
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.tick import Tick


@dataclass(slots=True, eq=False)
class LlmScheduler:
    """Moves sequences on, tick by tick; used by one thread.

    `prefill_chunk` bounds the prompt tokens of a tick in which others decode. When memory runs out the youngest sequence goes
    back to the queue and is computed again later, by the same calls as before.
    """

    engine: CausalEngine
    cache: PrefixCache
    max_rows: int
    context_length: int
    prefill_chunk: int = 128
    idle_prefill_chunk: int = 512
    speculation_rows: int = 2
    ticked: Callable[[Tick], None] = lambda tick: None
    _rows: KvRows = field(init=False)
    _prefill: Prefill = field(init=False)
    _decode: Decode = field(init=False)
    _answer_prefill: AnswerPrefill = field(init=False)

    def __post_init__(self) -> None:
        self._rows = KvRows(self.engine, self.cache, self.max_rows, self.context_length)
        self._prefill = Prefill(self._rows, self.prefill_chunk, self.idle_prefill_chunk)
        self._decode = Decode(self._rows, self.speculation_rows)
        self._answer_prefill = AnswerPrefill(self._rows)

    @property
    def longest(self) -> int:
        """Tokens a sequence can have at most."""
        return self._rows.longest

    @property
    def used_tokens(self) -> int:
        """Places of the KV cache that hold something needed."""
        return self._rows.used_tokens

    @property
    def idle(self) -> bool:
        return not (self._prefill.waiting or self._rows.held)

    def advance(self, sequences: Sequence[GeneratedSequence]) -> None:
        """One tick for the unfinished of `sequences`; those that are missing since the last tick are let go of."""
        tick = Tick()
        self._answer_prefill.stop()
        self._let_go({id(sequence) for sequence in sequences})
        self._prefill.enqueue(sequences)
        self._prefill.run(tick)
        preempted = self._decode.run(tick)
        self._prefill.take_back(preempted)
        tick.preempted = len(preempted)
        for sequence in [s for s in self._rows.decoding if s.finished]:
            self._rows.release(sequence)
            self._answer_prefill.note(sequence)
        self.ticked(tick)

    def rest(self) -> bool:
        """A chunk of the work that waits until there is nothing else to do; False if none is left."""
        self._let_go(set())
        return self._answer_prefill.step()

    def _let_go(self, alive: set[int]) -> None:
        """Drop the sequences that are not among `alive` (by identity), and those that have ended."""
        self._prefill.keep(alive)
        for sequence in self._rows.held:
            if id(sequence) not in alive or sequence.finished:
                self._rows.release(sequence)
