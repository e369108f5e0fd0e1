"""Parts of grammars in Lark as llguidance reads it: letters, marks that may be tokens, JSON of a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nereid.llm.json_schemas import readable
from nereid_protocol.sampling import SAMPLING_FIELDS

Schema = Mapping[str, Any]

AS_TEMPLATES_WRITE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python's json does, by which templates show calls."""
_SHORTEST_MARK = 4
"""Tokens of fewer letters are no marks: the tokenizer writes them as it likes."""

LONGEST_GRAMMAR = next(
    member.length or 0
    for field in SAMPLING_FIELDS
    if field.name == "structured_outputs"
    for member in field.members
    if member.name == "grammar"
)
"""Characters that `llm` takes."""


class TooLongError(ValueError):
    """The schemas are more than a grammar may hold."""


class NotBindableError(ValueError):
    """A function's schema cannot be written in the template's form: the sentence says why."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name = name


@dataclass(slots=True)
class Length:
    """Of parts of a grammar so far: definitions go along with each parameter, and what is too long is not written on."""

    left: int = LONGEST_GRAMMAR

    def taken(self, part: str) -> str:
        """The same part; raises TooLongError."""
        self.left -= len(part)
        if self.left < 0:
            raise TooLongError
        return part


def letters(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """Within a regular expression of Lark."""
    return re.escape(text).replace("/", "\\/").replace("\n", "n")


def as_json(schema: Schema, spacing: Mapping[str, Any]) -> str:
    read = readable(schema)
    whole = read if isinstance(read, dict) else {"allOf": [read]}
    return f"%json {json.dumps({**whole, 'x-guidance': spacing}, ensure_ascii=False)}"


def pieces(text: str, tokens: Mapping[str, int]) -> list[str]:
    """A text cut at the tokenizer's added tokens, which are pieces themselves."""
    known = sorted((token for token in tokens if len(token) >= _SHORTEST_MARK and token in text), key=len, reverse=True)
    if not known:
        return [text]
    return [piece for piece in re.split(f"({'|'.join(map(re.escape, known))})", text) if piece]


def marked(text: str, tokens: Mapping[str, int]) -> str:
    """A text whose marks are the tokens that they are, or are written letter by letter, which such a token never matches.

    Each of several has its own choice: letters that can only be such a token would be taken for it by llguidance.
    """
    parts = [(part, tokens.get(part) if part == text or len(part) >= _SHORTEST_MARK else None) for part in pieces(text, tokens)]
    return " ".join(letters(part) if token is None else f"(<[{token}]> | {letters(part)})" for part, token in parts)
