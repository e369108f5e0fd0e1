"""One answer as its reader sees it: tokens as they arrive, their text, their probabilities; knows not where they are drawn.

When what draws them has died, or has given its place up, they arrive again from the first on: of a stream what was received
already is compared and passed over, of another answer, of which nobody has seen anything, it is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.flow.errors import EngineError
from nereid.llm.prompt_scores import PromptLogprob
from nereid.llm.sequences import Delta, FinishReason, TokenLogprob
from nereid.llm.text import TextStream


@dataclass(slots=True, eq=False, kw_only=True)
class Answer:
    """`text` makes the text of deltas that bring none: those of requests without stop strings."""

    text: TextStream
    stop_ids: frozenset[int]
    written: list[int] = field(default_factory=list)
    all_logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[PromptLogprob, ...] | None = None
    embedding: NDArray[np.float32] | None = None
    finish_reason: FinishReason | None = None
    cumulative_logprob: float = 0.0
    cached_tokens: int = 0
    _texts: list[str] = field(default_factory=list)
    _passed: int = 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def rewind(self, *, seen: bool = True) -> None:
        """The tokens will arrive again; where nobody has `seen` any, others may come."""
        self._passed = 0
        if not seen:
            for known in (self.written, self.all_logprobs, self._texts):
                known.clear()
            self.finish_reason, self.cumulative_logprob = None, 0.0

    def receive(self, delta: Delta, cached_tokens: int) -> Delta | None:
        """Take what arrived; None where it had arrived before. Raises EngineError where it differs from what had."""
        if self._passed < len(self.written):
            self._compare(delta)
            return None
        if not self.written:
            self.cached_tokens = cached_tokens
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.embedding is not None:
            self.embedding = delta.embedding
        self._passed += len(delta.tokens)
        self.written.extend(delta.tokens)
        self.all_logprobs.extend(delta.logprobs)
        self.cumulative_logprob += sum(item.logprob for item in delta.logprobs)
        self.finish_reason = delta.finish_reason
        if delta.text is not None:
            self._texts.append(delta.text)
        return delta

    def show(self, delta: Delta) -> str:
        """A delta's text, made here and now where it was not needed before; in order, on one thread at a time."""
        if delta.text is not None:
            return delta.text
        tokens = self._visible(delta.tokens)
        return self.text.finish(tokens) if delta.finish_reason else self.text.push(tokens)

    def show_all(self) -> str:
        """The text of a finished answer of which no delta has been shown."""
        if self._texts:
            return "".join(self._texts)
        self.text.finish(self._visible(self.written))
        return self.text.text

    def _visible(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token not in self.stop_ids]

    def _compare(self, delta: Delta) -> None:
        end = self._passed + len(delta.tokens)
        same = delta.tokens == tuple(self.written[self._passed : end])
        if self.all_logprobs:
            same = same and delta.logprobs == tuple(self.all_logprobs[self._passed : end])
        if not same or delta.finish_reason is not (self.finish_reason if end == len(self.written) else None):
            raise EngineError(
                f"token {self._passed} came out differently when the answer was computed again, after its worker had died or "
                "others had got its place; ask again (with speculation, or of a model without batch_invariant, this may be)"
            )
        self._passed = end
