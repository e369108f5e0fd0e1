"""From a prompt's text to its tokens, with work that the context bounds; knows no other option of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from nereid.flow.errors import ContextLengthError, InvalidRequestError
from nereid.llm.prompt_places import places_in_text
from nereid.llm.settings import LlmFacts

_PROBE_MARGIN = 64
"""Tokens by which a text's beginning may be cut into more than the whole text is."""
_CHARACTERS = 4
"""Characters of a token in usual text."""


@dataclass(frozen=True, slots=True)
class Kept:
    """As many tokens of a prompt as are read at most: the last ones of it, or the first."""

    tokens: int
    last: bool

    @classmethod
    def asked(cls, wanted: int | None, longest: int, *, answer: int | None, last: bool) -> Kept | None:
        """`truncate_prompt_tokens` before an answer of so many tokens; None: all are read. Raises InvalidRequestError."""
        if wanted is None:
            return None
        if wanted == 0 or wanted >= longest:
            raise InvalidRequestError.of("truncate_prompt_tokens", wanted, f"-1, or 1 to {longest - 1}")
        if wanted == -1:
            room = longest - max(1, answer or 1)
            wanted = room if room > 0 else longest - 1  # an answer for which there is no room is refused by its own name
        return cls(wanted, last)

    def of(self, tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(tokens[-self.tokens :] if self.last else tokens[: self.tokens])


@dataclass(frozen=True, slots=True)
class Read:
    """What is read of a prompt that was sent as text: the part of the text, its tokens, and where each begins in it."""

    text: str
    tokens: tuple[int, ...]
    places: tuple[int, ...]


def read_part(
    text: str, tokenizer: Tokenizer, facts: LlmFacts, longest: int, kept: Kept, *, add_special_tokens: bool = True
) -> Read:
    """So many of a text's tokens; those that the tokenizer adds stay, and count. Raises InvalidRequestError.

    No more of a long text is cut into tokens than is needed, and a margin: at its edge they may be others than in the whole.
    """
    part, encoding = _enough(text, tokenizer, kept, add_special_tokens)
    tokens, places = encoding.ids, places_in_text(encoding)
    whole = own = _own(encoding.special_tokens_mask)
    room = kept.tokens - (len(tokens) - len(own))
    if len(own) > room:
        if room < 1:
            least = kept.tokens - room + 1
            raise InvalidRequestError.of(
                "truncate_prompt_tokens", kept.tokens, f"at least {least}: the tokenizer adds {least - 1}"
            )
        own = own[-room:] if kept.last else own[:room]
    begin = places[own.start] if own.start > whole.start else 0
    stop = places[own.stop] if own.stop < whole.stop else len(part)
    read = (*range(whole.start), *own, *range(whole.stop, len(tokens)))
    made = Read(
        text=part[begin:stop],
        tokens=tuple(tokens[place] for place in read),
        places=tuple(min(max(places[place], begin), stop) - begin for place in read),
    )
    _check_tokens_of_text(made.text, made.tokens, facts, longest)
    return made


def _own(added: Sequence[int]) -> range:
    """The text's own tokens, which stand between those that the tokenizer adds."""
    places = [place for place, mark in enumerate(added) if not mark]
    return range(places[0], places[-1] + 1) if places else range(len(added), len(added))


def tokens_of_text(
    text: str, tokenizer: Tokenizer, facts: LlmFacts, longest: int, *, add_special_tokens: bool = True
) -> Encoding:
    """A text's tokens, fewer than `longest`; raises InvalidRequestError naming `text_input`."""
    encoding = _encode(text, tokenizer, facts, longest, add_special_tokens)
    _check_tokens_of_text(text, encoding.ids, facts, longest)
    return encoding


def _check_tokens_of_text(text: str, tokens: Sequence[int], facts: LlmFacts, longest: int) -> None:
    if not tokens:
        raise InvalidRequestError.of("text_input", text, "text of at least one token")
    _check_length("text_input", len(tokens), longest)
    check_tokens("text_input", tokens, facts)  # a tokenizer may know tokens that the model has no room for


def tokens_of_ids(ids: NDArray[np.int32], facts: LlmFacts, longest: int, kept: Kept | None = None) -> tuple[int, ...]:
    """A prompt that was sent as tokens, or what is kept of it; raises InvalidRequestError naming `input_ids`."""
    tokens = tuple(ids.tolist()) if kept is None else kept.of(ids.tolist())
    _check_length("input_ids", len(tokens), longest)
    if not tokens:
        raise InvalidRequestError.of("input_ids", list(tokens), "at least one token")
    check_tokens("input_ids", tokens, facts)
    return tokens


def check_tokens(name: str, tokens: Sequence[int], facts: LlmFacts) -> None:
    for token in tokens:
        if not 0 <= token < facts.vocabulary:
            raise InvalidRequestError.of(name, token, f"token ids 0 to {facts.vocabulary - 1}")


def _encode(text: str, tokenizer: Tokenizer, facts: LlmFacts, longest: int, special: bool) -> Encoding:
    """One that is too long is refused by its length, or by its beginning."""
    most = longest * facts.longest_token
    if len(text) > most:
        raise ContextLengthError.of("text_input", f"{len(text)} characters", f"at most {most} characters: {context(longest)}")
    begins = _CHARACTERS * (longest + _PROBE_MARGIN)
    while len(text) > 2 * begins:
        found = len(tokenizer.encode(text[:begins], add_special_tokens=special).ids)
        if found > longest + _PROBE_MARGIN:
            raise ContextLengthError.of("text_input", f"more than {longest - 1} tokens", f"shorter: {context(longest)}")
        begins *= 2
    return tokenizer.encode(text, add_special_tokens=special)


def _enough(text: str, tokenizer: Tokenizer, kept: Kept, special: bool) -> tuple[str, Encoding]:
    """As much of the text, from its end or its beginning, as has more tokens than are kept, or all of it; and its tokens."""
    characters = _CHARACTERS * (kept.tokens + _PROBE_MARGIN)
    while characters < len(text):
        part = text[-characters:] if kept.last else text[:characters]
        encoding = tokenizer.encode(part, add_special_tokens=special)
        if len(encoding.ids) > kept.tokens + _PROBE_MARGIN:
            return part, encoding
        characters *= 2
    return text, tokenizer.encode(text, add_special_tokens=special)


def _check_length(name: str, tokens: int, longest: int) -> None:
    if tokens >= longest:
        raise ContextLengthError.of(name, f"{tokens} tokens", f"at most {longest - 1} tokens: {context(longest)}")


def context(longest: int) -> str:
    """What a model holds, in the words that OpenAI's API has for it: clients look for them in sentences."""
    return f"this model's maximum context length is {longest} tokens, with the answer"
