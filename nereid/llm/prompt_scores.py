"""Log probabilities of a prompt's own tokens, made chunk by chunk while it is read; knows no engine and no text.

No more logits are held than those of one chunk, of which `ScoredPrompt.chunk` bounds the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nereid.llm.sampling import log_softmax

LOGITS_BYTES = 64 * 2**20
"""Of logits of one chunk: 110 tokens of a vocabulary of 152,000."""
_FEWEST_TOKENS = 32
"""Of a chunk, however many tokens a vocabulary has: as many rows as kernels take at a time."""


class PromptLogprob(NamedTuple):
    """A token of a prompt with its natural-log probability after those before it, and how many tokens were as likely or likelier.

    `top` are the likeliest tokens at its place, each with its log probability.
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class ScoredPrompt:
    """The scores of one prompt as far as it is read: those of its second token and of all behind it.

    `top` is how many of the likeliest tokens are told at each place, `vocabulary` how many logits a place has.
    """

    prompt: list[int]
    top: int
    vocabulary: int
    found: list[PromptLogprob] = field(default_factory=list)

    @property
    def chunk(self) -> int:
        """Tokens that a chunk may have."""
        return max(_FEWEST_TOKENS, LOGITS_BYTES // (4 * self.vocabulary))

    @property
    def is_complete(self) -> bool:
        return len(self.found) == len(self.prompt) - 1

    def take(self, start: int, logits: NDArray[np.float32]) -> None:
        """The logits after the tokens from place `start` on, one row a token; what was scored before is passed over.

        A prompt that lost its place in the memory is read again.
        """
        for place, values in enumerate(logits, start + 1):
            if place == len(self.found) + 1 and place < len(self.prompt):
                self.found.append(_score(values, self.prompt[place], self.top))


def read_scores(raw: list[Any]) -> tuple[PromptLogprob, ...]:
    """Scores that came as plain JSON."""
    return tuple(PromptLogprob(token, own, rank, tuple((int(i), float(v)) for i, v in top)) for token, own, rank, top in raw)


def likeliest(logprobs: NDArray[np.float32], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens, the likeliest first, ties to the smaller token."""
    count = min(count, len(logprobs))
    if not count:
        return ()
    best = np.argpartition(-logprobs, count - 1)[:count]
    order = best[np.lexsort((best, -logprobs[best]))]
    return tuple((int(i), float(logprobs[i])) for i in order)


def _score(logits: NDArray[np.float32], token: int, top: int) -> PromptLogprob:
    logprobs = log_softmax(logits)
    own = logprobs[token]
    return PromptLogprob(token, float(own), int((logprobs >= own).sum()), likeliest(logprobs, top))
