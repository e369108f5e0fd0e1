"""Speculative decoding: draft tokens that one call then checks (Leviathan et al., 2023): by prompt lookup, or by a draft model.

A draft token is accepted where the sampler, with its own seed and position, draws the very same token, so speculation changes no
token of an answer, only its speed. Prompt lookup (Saxena, 2023) proposes what followed the last occurrence of the sequence's
final tokens, be it in the prompt or in the answer. A draft model draws with the sequence's own sampling, seed and position: where
the two models agree on the distribution, they draw the same token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nereid.llm.engine import DraftEngine
from nereid.llm.sampling import Row, sample

LONGEST_MATCH = 4
SHORTEST_MATCH = 2


class Proposer(Protocol):
    """Follows one sequence and proposes what comes next."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Take tokens that now belong to the sequence."""

    def propose(self, most: int, row: Row) -> list[int]:
        """Up to `most` tokens that may come next; `row` is how the first of them will be drawn."""


@dataclass(slots=True, eq=False)
class PromptLookup:
    """Where each short run of tokens was last seen in one sequence; grows with it."""

    tokens: list[int] = field(default_factory=list)
    _last: dict[tuple[int, ...], int] = field(default_factory=dict)
    _indexed: int = 0

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)

    def propose(self, most: int, row: Row) -> list[int]:
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


@dataclass(slots=True, eq=False)
class DraftModel:
    """A small model's engine with a few rows of KV cache, each lent to one sequence at a time.

    `vocabulary` is the large model's. Its own may be narrower or wider: tokens that one of them lacks are never proposed, and
    what comes after one that this model lacks is not proposed at all. Prompts are read `chunk` tokens a call.
    """

    engine: DraftEngine
    rows: int
    capacity: int
    vocabulary: int
    chunk: int
    _lent: OrderedDict[int, DraftProposer | None] = field(init=False)

    @property
    def width(self) -> int:
        """Tokens that both models know."""
        return min(self.vocabulary, self.engine.vocabulary)

    def __post_init__(self) -> None:
        self.engine.arrange(self.rows, self.capacity)
        self._lent = OrderedDict.fromkeys(range(self.rows))

    def row_of(self, proposer: DraftProposer) -> int:
        """The proposer's row; one that has none gets the row that was silent for longest."""
        row = next((row for row, borrower in self._lent.items() if borrower is proposer), None)
        if row is None:
            row = next(iter(self._lent))
            proposer.seen.clear()
        self._lent[row] = proposer
        self._lent.move_to_end(row)
        return row


@dataclass(slots=True, eq=False)
class DraftProposer:
    """One sequence as the draft model knows it; `seen` are the tokens whose KV its row holds, rejected ones among them."""

    model: DraftModel
    tokens: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    _agreed: int = 0
    _foreign: bool = False

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)
        self._foreign = self._foreign or max(tokens, default=0) >= self.model.engine.vocabulary

    def propose(self, most: int, row: Row) -> list[int]:
        """Empty while a long prompt is still being read, and where there is a token that the draft model lacks."""
        model = self.model
        if self._foreign:
            return []
        most = min(most, model.capacity - len(self.tokens) - 2)
        if most < 1:
            return []
        own = model.row_of(self)
        self._forget_rejected()
        pending = self.tokens[len(self.seen) :]
        logits = model.engine.extend(own, len(self.seen), pending[: model.chunk])
        self.seen += pending[: model.chunk]
        if len(pending) > model.chunk:
            return []
        draft: list[int] = []
        while True:
            token = int(sample(logits[-1:, : model.width].copy(), [row])[0])
            if token < 0:  # nothing can be drawn: what is proposed so far stands
                return draft
            draft.append(token)
            if len(draft) == most:
                return draft
            row = Row(row.sampling, row.position + 1)
            logits = model.engine.extend(own, len(self.seen), draft[-1:])
            self.seen.append(draft[-1])

    def _forget_rejected(self) -> None:
        """Keep of what was seen what the sequence really became; its last token's logits are needed, so that one is not kept."""
        most = min(len(self.seen), len(self.tokens) - 1)
        agreed = min(self._agreed, most)
        while agreed < most and self.seen[agreed] == self.tokens[agreed]:
            agreed += 1
        del self.seen[agreed:]
        self._agreed = agreed


@dataclass(slots=True)
class SpeculationMeter:
    """Whether speculation pays for a sequence: tokens per second with and without, both as moving averages.

    The first steps go without, to know what that costs; each pause after a rejected draft is twice as long as the one before.
    """

    most: int
    pause: int = 16
    longest_pause: int = 256
    _with: float = 0.0
    _without: float = 0.0
    _silent: int = 4

    def allowed(self) -> int:
        """How many draft tokens to propose now; 0 while speculation does not pay."""
        return 0 if self._silent > 0 else self.most

    def checked(self, tokens: int, seconds: float) -> None:
        """A checked draft gave `tokens` tokens (the certain one included) in so many seconds."""
        self._with = _follow(self._with, tokens / seconds)
        if self._with < self._without:
            self._silent = self.pause
            self.pause = min(2 * self.pause, self.longest_pause)
            self._with = 0.0  # the next try counts for itself

    def plain(self, seconds: float) -> None:
        """A step without a draft took so many seconds."""
        self._without = _follow(self._without, 1 / seconds)
        self._silent = max(0, self._silent - 1)


def _follow(average: float, value: float) -> float:
    return value if not average else 0.8 * average + 0.2 * value
