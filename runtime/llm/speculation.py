"""Guesses of the next tokens that one call then checks; knows nothing of engines.

Prompt lookup (Saxena, 2023): what followed the last occurrence of the sequence's final tokens, be it in the prompt or in the
answer. A guess is accepted where the sampler, with its own seed and position, draws the very same token: for guesses that
are certain this is rejection sampling (Leviathan et al., 2023), so the distribution is untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LONGEST_MATCH = 4
SHORTEST_MATCH = 2


@dataclass(slots=True, eq=False)
class PromptLookup:
    """Where each short run of tokens was last seen in one sequence; grows with it."""

    tokens: list[int] = field(default_factory=list)
    _last: dict[tuple[int, ...], int] = field(default_factory=dict)
    _indexed: int = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Take tokens that now belong to the sequence."""
        self.tokens.extend(tokens)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; empty where nothing matches."""
        self._index()
        end = len(self.tokens)
        for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            if end < length:
                continue
            at = self._last.get(tuple(self.tokens[end - length :]))
            if at is not None:
                return self.tokens[at : at + most]
        return []

    def _index(self) -> None:
        """Note every run that something follows; the final one is what is looked for."""
        for end in range(max(self._indexed, 1), len(self.tokens)):
            for length in range(SHORTEST_MATCH, LONGEST_MATCH + 1):
                if end >= length:
                    self._last[tuple(self.tokens[end - length : end])] = end
        self._indexed = max(self._indexed, len(self.tokens))


@dataclass(slots=True)
class SpeculationMeter:
    """Whether guessing pays for a sequence: tokens per second with and without, both as moving averages."""

    most: int
    pause: int = 32
    _with: float = 0.0
    _without: float = 0.0
    _silent: int = 0

    def allowed(self) -> int:
        """How many tokens to guess now; 0 while guessing does not pay."""
        if self._silent > 0:
            self._silent -= 1
            return 0
        return self.most

    def guessed(self, tokens: int, seconds: float) -> None:
        """A checked guess gave `tokens` tokens (the certain one included) in so many seconds."""
        self._with = _follow(self._with, tokens / seconds)
        if self._without and self._with < self._without:
            self._silent = self.pause

    def plain(self, seconds: float) -> None:
        """A step without a guess took so many seconds."""
        self._without = _follow(self._without, 1 / seconds)


def _follow(average: float, value: float) -> float:
    return value if not average else 0.8 * average + 0.2 * value
