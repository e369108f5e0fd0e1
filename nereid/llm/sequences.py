"""One answer being drawn: its tokens, why it ends, its place in the KV memory; knows neither engines nor Triton."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nereid.llm.sampling import Row, Sampling, TokenCounts, log_softmax
from nereid.llm.speculation import Guesser, SpeculationMeter
from nereid.llm.structure import Structure
from nereid.llm.text import TextStream

_admissions = itertools.count()


class FinishReason(StrEnum):
    """vLLM's and OpenAI's words for why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token with its natural-log probability, and the likeliest tokens at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Delta(NamedTuple):
    """What one token, or several, added to an answer; `finish_reason` comes with the last.

    `text` is None where no stop string had to be looked for: whoever shows the delta makes it, `Answer.show`.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    text: str | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class GeneratedSequence:
    """`stop_ids` end the answer and are no part of its text; `emit` gets every delta, on the tick thread."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stop_ids: frozenset[int]
    text: TextStream
    emit: Callable[[Delta], None]
    min_tokens: int = 0
    logprobs: int | None = None
    structure: Structure | None = None
    guesser: Guesser | None = None
    meter: SpeculationMeter | None = None

    written: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    raw_logits: NDArray[np.float32] | None = None
    row: int = -1
    computed: int = 0
    lookahead: int = 0
    admission: int = field(default_factory=lambda: next(_admissions))
    tokens: list[int] = field(init=False)
    _counts: TokenCounts | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        if self.sampling.penalised:
            self._counts = TokenCounts.of(self.prompt)
        if self.guesser is not None:
            self.guesser.extend(self.prompt)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def remaining(self) -> int:
        """Tokens that may still be written."""
        return self.max_tokens - len(self.written)

    @property
    def behind(self) -> bool:
        """Whether tokens it has written must be computed again before the next one can be drawn.

        The newest token is computed by the very call that gives the next one's logits: it is no part of what is behind.
        """
        return self.computed < len(self.tokens) - 1

    def next_row(self) -> Row:
        """How the next token is to be drawn."""
        return Row(
            self.sampling,
            len(self.written),
            self._counts,
            tuple(self.stop_ids) if len(self.written) < self.min_tokens else (),
            self.structure.allowed() if self.structure is not None else None,
        )

    def take(self, token: int) -> None:
        """Add a drawn token, tell of it, and see whether it was the last."""
        self.tokens.append(token)
        self.written.append(token)
        if self._counts is not None:
            self._counts.add(token)
        if self.guesser is not None:
            self.guesser.extend([token])
        logprobs = (self._logprob(token),) if self.raw_logits is not None else ()
        ends = token in self.stop_ids
        if self.structure is not None and not ends:
            ends = self.structure.take(token)
        shown = None
        if self.text.stops:
            shown = "" if token in self.stop_ids else self.text.push([token])
            ends = ends or self.text.stopped_by is not None
        if ends:
            self.finish_reason = FinishReason.STOP
        elif self.remaining <= 0:
            self.finish_reason = FinishReason.LENGTH
        if shown is not None and self.finished:
            shown += self.text.finish()
        self.emit(Delta((token,), logprobs, self.finish_reason, shown))

    def _logprob(self, token: int) -> TokenLogprob:
        assert self.raw_logits is not None
        values = log_softmax(self.raw_logits)
        self.raw_logits = None
        own = float(values[token])
        count = min(self.logprobs or 0, len(values))
        best = np.argpartition(-values, count - 1)[:count] if count else np.empty(0, np.int64)
        order = best[np.lexsort((best, -values[best]))]
        return TokenLogprob(token, own, tuple((int(i), float(values[i])) for i in order))
