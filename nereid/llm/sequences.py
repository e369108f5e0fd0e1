"""One answer being drawn: its tokens, why it ends, its row of the KV cache; knows neither engines nor Triton."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nereid.flow.errors import EngineError, InvalidRequestError, RequestError
from nereid.flow.tickets import AGING_SECONDS, USUAL_PRIORITY
from nereid.llm.bad_words import BadWords
from nereid.llm.prompt_means import PromptMean
from nereid.llm.prompt_scores import PromptLogprob, ScoredPrompt, likeliest
from nereid.llm.sampling import NOT_FINITE, Row, Sampling, TokenCounts, log_softmax, log_total
from nereid.llm.speculation import Proposer, SpeculationMeter
from nereid.llm.structure import Structure
from nereid.llm.text import TextStream

_admissions = itertools.count()


class FinishReason(StrEnum):
    """vLLM's and OpenAI's words for why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token with its natural-log probability, and the likeliest tokens at its position, or those that were asked for."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Delta(NamedTuple):
    """What one token, or several, added to an answer; `finish_reason` comes with the last.

    `text` is None where no stop string had to be looked for: whoever shows the delta makes it, `Answer.show`. The first delta of
    an answer whose prompt is scored has `prompt_logprobs`, for every token of the prompt but the first; the only one of a prompt
    that is embedded has its `embedding`.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    text: str | None = None
    prompt_logprobs: tuple[PromptLogprob, ...] | None = None
    embedding: NDArray[np.float32] | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class GeneratedSequence:
    """`stop_ids` end the answer and are no part of its text; `emit` gets every delta, on the tick thread.

    `allowed` (bool, vocabulary), where given, are all the tokens that it may have, and `bad_words` those that may not follow.
    `scored`: every delta brings its tokens' log probabilities, with those of the `top_logprobs` likeliest, or of
    `logprob_token_ids`. `scored_prompt`: so does the first one, for the prompt's. `mean`: the prompt is embedded, and nothing is
    written. Whatever goes wrong with this sequence alone is its `error`, by which it has finished.
    """

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stop_ids: frozenset[int]
    text: TextStream
    emit: Callable[[Delta], None]
    min_tokens: int = 0
    allowed: NDArray[np.bool_] | None = None
    bad_words: BadWords | None = None
    scored: bool = False
    top_logprobs: int = 0
    logprob_token_ids: tuple[int, ...] = ()
    scored_prompt: ScoredPrompt | None = None
    mean: PromptMean | None = None
    structure: Structure | None = None
    proposer: Proposer | None = None
    meter: SpeculationMeter | None = None
    adapter: int = 0
    cache_salt: str = ""
    priority: int = USUAL_PRIORITY

    written: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: RequestError | None = None
    cached_tokens: int = 0
    raw_logits: NDArray[np.float32] | None = None
    row: int = -1
    computed: int = 0
    lookahead: int = 0
    admission: int = field(default_factory=lambda: next(_admissions))
    arrived: float = field(default_factory=time.monotonic)
    tokens: list[int] = field(init=False)
    _counts: TokenCounts | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        if self.sampling.penalised:
            self._counts = TokenCounts.of(self.prompt)
        if self.proposer is not None:
            self.proposer.extend(self.prompt)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def standing(self) -> tuple[float, int]:
        """Who goes first, in the queue and in the memory: the least of all. Of two that age, the first stays the first."""
        return self.priority * AGING_SECONDS + self.arrived, self.admission

    @property
    def yields(self) -> bool:
        """Whether it is meant to be in nobody's way."""
        return self.priority > USUAL_PRIORITY

    @property
    def remaining(self) -> int:
        """Tokens that may still be written."""
        return self.max_tokens - len(self.written)

    @property
    def must_score(self) -> bool:
        """Whether logits of all of its prompt are needed."""
        return self.scored_prompt is not None and not self.scored_prompt.is_complete

    @property
    def must_read_all(self) -> bool:
        """Whether nothing of its prompt can come from the prefix cache."""
        return self.must_score or self.mean is not None

    @property
    def behind(self) -> bool:
        """Whether tokens it has written must be computed again before the next one can be drawn.

        The newest token is computed by the very call that gives the next one's logits: it is no part of what is behind.
        """
        return self.computed < len(self.tokens) - 1

    def next_row(self) -> Row:
        """How the next token is to be drawn; a grammar that has failed leaves nothing that is allowed."""
        allowed = self.allowed
        if self.structure is not None:
            followed = self._followed(self.structure)
            allowed = followed if self.allowed is None else followed & self.allowed
        banned = tuple(self.stop_ids) if len(self.written) < self.min_tokens else ()
        if self.bad_words is not None:
            banned += self.bad_words.after(self.written)
        return Row(self.sampling, len(self.written), self._counts, banned, allowed)

    def _followed(self, structure: Structure) -> NDArray[np.bool_]:
        """What the grammar allows."""
        try:
            return structure.allowed()
        except ValueError as error:
            self.error = _broken(structure, error)
            return np.zeros(structure.vocabulary, np.bool_)

    def end_unanswered(self) -> None:
        """The prompt is read, and nothing is to be written."""
        self.finish_reason = FinishReason.LENGTH
        self._emit(Delta((), (), self.finish_reason, "" if self.text.stops else None))

    def end_embedded(self) -> None:
        """The prompt is read, and its mean is all that is asked for."""
        assert self.mean is not None
        embedding = self.mean.value
        if not np.isfinite(embedding).all():
            self.error = EngineError("the model's last hidden states are not finite; the prompt has no embedding")
            return
        self.finish_reason = FinishReason.LENGTH
        self.emit(Delta((), (), self.finish_reason, embedding=embedding))

    def take(self, token: int) -> None:
        """Add a drawn token, tell of it, and see whether it was the last; one that could not be drawn is an error."""
        if token < 0 or self.error is not None:
            self.error = self.error or self._undrawn(token)
            return
        self.tokens.append(token)
        self.written.append(token)
        if self._counts is not None:
            self._counts.add(token)
        if self.proposer is not None:
            self.proposer.extend([token])
        logprobs = (self._logprob(token),) if self.raw_logits is not None else ()
        ends = token in self.stop_ids
        if self.structure is not None and not ends:
            try:
                ends = self.structure.take(token)
            except ValueError as error:
                self.error = _broken(self.structure, error)
                return
        shown = None
        if self.text.stops:  # they wait for min_tokens, as stop tokens do
            may_stop = len(self.written) > self.min_tokens
            shown = "" if token in self.stop_ids else self.text.push([token], may_stop=may_stop)
            ends = ends or self.text.stopped_by is not None
        if ends:
            self.finish_reason = FinishReason.STOP
        elif self.remaining <= 0:
            self.finish_reason = FinishReason.LENGTH
        if shown is not None and self.finished:
            shown += self.text.finish()
        self._emit(Delta((token,), logprobs, self.finish_reason, shown))

    def _emit(self, delta: Delta) -> None:
        if self.scored_prompt is not None and len(self.written) <= 1:
            delta = delta._replace(prompt_logprobs=tuple(self.scored_prompt.found))
        self.emit(delta)

    def _undrawn(self, token: int) -> RequestError:
        if token == NOT_FINITE:
            return EngineError("the model's logits are not finite; the answer cannot go on")
        formed = None if self.structure is None else self._followed(self.structure)
        field = self._narrowed_by(formed)
        bounds = [bound for bound in (formed, self.allowed) if bound is not None]
        bad = () if self.bad_words is None else self.bad_words.after(self.written)
        may_end = any(token not in bad and all(bound[token] for bound in bounds) for token in self.stop_ids)
        if len(self.written) < self.min_tokens and may_end:
            shown, allowed = self.min_tokens, f"at most {len(self.written)}: then the answer can only end"
            return InvalidRequestError.of("min_tokens", shown, f"{allowed} ({field})")
        return InvalidRequestError(f"{field}: no token is allowed after {len(self.written)} tokens of the answer", field)

    def _narrowed_by(self, formed: NDArray[np.bool_] | None) -> str:
        """The field that has left nothing to draw; `formed` is what the grammar allows."""
        narrowing = {"allowed_token_ids": self.allowed, "bad_words": self.bad_words}
        field = next((name for name, bound in narrowing.items() if bound is not None), None)
        if self.structure is not None and (field is None or formed is None or not formed.any()):
            return f"structured_outputs.{self.structure.kind}"
        return field or "stop_token_ids"

    def _logprob(self, token: int) -> TokenLogprob:
        assert self.raw_logits is not None
        raw, self.raw_logits = self.raw_logits, None
        if self.logprob_token_ids or not self.top_logprobs:
            total = log_total(raw)
            told = ((wanted, float(np.float32(float(raw[wanted]) - total))) for wanted in self.logprob_token_ids)
            return TokenLogprob(token, float(np.float32(float(raw[token]) - total)), tuple(told))
        values = log_softmax(raw)
        return TokenLogprob(token, float(values[token]), likeliest(values, self.top_logprobs))


def _broken(structure: Structure, error: ValueError) -> InvalidRequestError:
    field = f"structured_outputs.{structure.kind}"
    return InvalidRequestError(f"{field}: the grammar cannot be followed further: {error}", field)
