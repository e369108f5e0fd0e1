"""Texts that an answer may not have, as tokens: of each the last one is not drawn where the others stand before it.

A word stands at the beginning of a text, or behind a space, by other tokens: it is cut into tokens as it is, and behind a space
(vLLM's `bad_words`, which leaves the second form out where it has another number of tokens than the first).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from nereid.flow.errors import InvalidRequestError
from nereid.llm.settings import LlmFacts


def tokens_of_bad_words(words: Iterable[str], tokenizer: Tokenizer, facts: LlmFacts) -> tuple[tuple[int, ...], ...]:
    """Both forms of each word; raises InvalidRequestError for one that is no text, or that has a token the model lacks."""
    found: dict[tuple[int, ...], None] = {}
    for place, word in enumerate(words):
        if not _is_unicode(word):
            raise InvalidRequestError.of(f"bad_words.{place}", word, "Unicode, without half of a surrogate pair")
        bare = word.lstrip()
        for form in (bare, f" {bare}") if bare else ("",):
            tokens = tuple(tokenizer.encode(form, add_special_tokens=False).ids)
            if not tokens:
                raise InvalidRequestError.of(f"bad_words.{place}", word, "a text of at least one token")
            if max(tokens) >= facts.vocabulary:
                raise InvalidRequestError.of(f"bad_words.{place}", word, f"a text of token ids 0 to {facts.vocabulary - 1}")
            found[tokens] = None
    return tuple(found)


def _is_unicode(text: str) -> bool:
    """JSON's escapes may write what is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True, eq=False)
class BadWords:
    """`_ends`: which tokens may not follow others; as many are looked at as `_lengths` say."""

    _ends: dict[tuple[int, ...], tuple[int, ...]]
    _lengths: tuple[int, ...]

    @classmethod
    def of(cls, words: Iterable[Sequence[int]]) -> BadWords | None:
        """None where there are no words."""
        ends: dict[tuple[int, ...], tuple[int, ...]] = {}
        for *before, last in words:
            ends[tuple(before)] = (*ends.get(tuple(before), ()), last)
        return cls(ends, tuple(sorted({len(before) for before in ends}))) if ends else None

    def after(self, written: Sequence[int]) -> tuple[int, ...]:
        """Tokens that would complete a word behind what is written of the answer; the prompt does not count."""
        found: tuple[int, ...] = ()
        for length in self._lengths:
            if length > len(written):
                break
            found += self._ends.get(tuple(written[len(written) - length :]), ())
        return found
