"""From a prompt's text to its tokens, with work that the context bounds; knows no other option of a request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from nereid.flow.errors import ContextLengthError, InvalidRequestError
from nereid.llm.settings import LlmFacts

_PROBE_MARGIN = 64
"""Tokens by which a text's beginning may be cut into more than the whole text is."""
_CHARACTERS = 4
"""Characters of a token in usual text."""


def tokens_of_text(
    text: str, tokenizer: Tokenizer, facts: LlmFacts, longest: int, *, add_special_tokens: bool = True
) -> Encoding:
    """A text's tokens, fewer than `longest`; raises InvalidRequestError naming `text_input`."""
    encoding = _encode(text, tokenizer, facts, longest, add_special_tokens)
    tokens = encoding.ids
    if not tokens:
        raise InvalidRequestError.of("text_input", text, "text of at least one token")
    _check_length("text_input", len(tokens), longest)
    check_tokens("text_input", tokens, facts)  # a tokenizer may know tokens that the model has no room for
    return encoding


def tokens_of_ids(ids: NDArray[np.int32], facts: LlmFacts, longest: int) -> tuple[int, ...]:
    """A prompt that was sent as tokens; raises InvalidRequestError naming `input_ids`."""
    _check_length("input_ids", ids.size, longest)
    tokens = tuple(ids.tolist())
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
        raise ContextLengthError.of("text_input", f"{len(text)} characters", f"at most {most} characters: {_holds(longest)}")
    begins = _CHARACTERS * (longest + _PROBE_MARGIN)
    while len(text) > 2 * begins:
        found = len(tokenizer.encode(text[:begins], add_special_tokens=special).ids)
        if found > longest + _PROBE_MARGIN:
            raise ContextLengthError.of("text_input", f"more than {longest - 1} tokens", f"shorter: {_holds(longest)}")
        begins *= 2
    return tokenizer.encode(text, add_special_tokens=special)


def _check_length(name: str, tokens: int, longest: int) -> None:
    if tokens >= longest:
        allowed = f"at most {longest - 1} tokens: the context holds {longest} with the answer"
        raise ContextLengthError.of(name, f"{tokens} tokens", allowed)


def _holds(longest: int) -> str:
    return f"the context holds {longest} tokens with the answer"
