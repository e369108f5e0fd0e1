"""Literals in which models write arguments, Python's and Gemma's, as JSON."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from nereid.serving.gateway.tag_values import json_of


def python_value(text: str, schema: object, root: Mapping[str, Any]) -> str:
    """A value of Python's, by its schema; quotes and line breaks that a text has in it count as escaped."""
    text = text.strip()
    quote = text[:1]
    if quote in ("'", '"') and len(text) > 1 and text.endswith(quote) and not text.startswith(quote * 3):
        inner = re.sub(rf"\\.|{quote}|\n", lambda found: _ESCAPES.get(found[0], found[0]), text[1:-1], flags=re.DOTALL)
        text = f"{quote}{inner}{quote}"
    return json_of(text, {} if schema is None else schema, root)


_ESCAPES = {"'": "\\'", '"': '\\"', "\n": "\\n"}


def python_written(value: Any) -> str:
    """A value as a model writes it that calls by Python."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def braced_value(text: str, quotes: str, schema: object, root: Mapping[str, Any]) -> str:
    """A value of Gemma's, by its schema; the mark before a text may have been left out."""
    text, known = text.strip(), {} if schema is None else schema
    if len(text) > 1 and text[0] == text[-1] == "`":  # as JavaScript has it
        return json_of(text[1:-1], known, root, text_first=True)
    if text.startswith(quotes):
        return json_of(text.removeprefix(quotes).removesuffix(quotes), known, root, text_first=True)
    if text[:1] in ("{", "["):
        try:
            return json.dumps(_Braces(text, quotes).value(), ensure_ascii=False)
        except (ValueError, IndexError, RecursionError):
            return json_of(text, known, root)
    if text.endswith(quotes):
        return json_of(text.removesuffix(quotes), known, root, text_first=True)
    return json_of(text, known, root)


_JSON = json.JSONDecoder(strict=False)


class _Braces:
    """Reads one value: objects' names and texts may stand between marks, in quotes, or plainly."""

    def __init__(self, text: str, quotes: str) -> None:
        self.text, self.quotes, self.at = text, quotes, 0

    def value(self) -> Any:
        self._space()
        if self.text.startswith((self.quotes, '"'), self.at):
            return self._quoted()
        match self.text[self.at]:
            case "{":
                return dict(self._items("}", self._member))
            case "[":
                return self._items("]", self.value)
            case _:
                return _scalar(self._plain(",]}"))

    def _items(self, end: str, item: Any) -> list[Any]:
        self.at += 1
        made: list[Any] = []
        while True:
            self._space()
            if self.text[self.at] == end:
                self.at += 1
                return made
            before = self.at
            made.append(item())
            self._space()
            if self.text[self.at] == ",":
                self.at += 1
            elif self.at == before:
                raise ValueError(f"nothing can be read at {before}")

    def _member(self) -> tuple[str, Any]:
        self._space()
        key = self._quoted() if self.text.startswith((self.quotes, '"'), self.at) else self._plain(":")
        self._space()
        if self.text[self.at] != ":":
            raise ValueError("a name without a value")
        self.at += 1
        return key, self.value()

    def _quoted(self) -> str:
        if not self.text.startswith(self.quotes, self.at):
            made, self.at = _JSON.raw_decode(self.text, self.at)
            return str(made)
        begin = self.at + len(self.quotes)
        end = self.text.index(self.quotes, begin)
        self.at = end + len(self.quotes)
        return self.text[begin:end]

    def _plain(self, ends: str) -> str:
        begin = self.at
        while self.text[self.at] not in ends:
            self.at += 1
        return self.text[begin : self.at].strip()

    def _space(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1


def _scalar(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            made = read(text)
            json.dumps(made, allow_nan=False)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return made
    return text
