"""Calls of tools read as they are written, where arguments are literals that are not JSON: Python's, or Gemma's."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.call_objects import NAME, Name, Piece, State
from nereid.serving.gateway.call_scanners import JsonCalls
from nereid.serving.gateway.literals import braced_value, python_value
from nereid.serving.gateway.tag_values import loaded

_OPENS, _CLOSES = "([{", ")]}"
_LONGEST_HEAD = 200


@dataclass(slots=True, eq=False)
class Extent:
    """Where a value ends that has been read from its beginning: before a comma or a bracket that is not its own.

    `quotes`: a mark around texts beside `"`; "": Python's quotes are. A quote that nothing follows which may follow a text stands
    within it: models forget to escape them.
    """

    quotes: str = ""
    at: int = 0
    _depth: int = 0
    _quote: str = ""

    def end(self, text: str) -> int:
        """-1: it has not come yet."""
        while self.at < len(text):
            rest = text[self.at : self.at + max(3, len(self.quotes))]
            step = self._within(text, rest) if self._quote else self._outside(text, rest)
            if step < 0:
                return -1
            if step == 0:
                return self.at
            self.at += step
        return -1

    def _outside(self, text: str, rest: str) -> int:
        plainly = self._plainly(text)
        marks = (self.quotes, '"', "`") if self.quotes else ('"""', "'''", '"', "'")
        if any(mark.startswith(rest) and mark != rest for mark in marks):
            return -1
        if mark := next((mark for mark in marks if rest.startswith(mark)), ""):
            if not plainly or mark == '"':
                self._quote = mark
            return len(mark)
        if self._depth == 0 and rest[0] in f",{_CLOSES}":
            return self._unopened(text) if self.quotes and rest[0] == "," else 0
        self._depth += (rest[0] in _OPENS) - (rest[0] in _CLOSES)
        return 1

    def _plainly(self, text: str) -> bool:
        """Whether the value has begun as a text without its mark."""
        lead = text[: self.at].lstrip()
        return self._depth == 0 and bool(lead) and not lead.startswith((self.quotes, '"', "{", "["))

    def _unopened(self, text: str) -> int:
        """A comma belongs to a text whose first mark was left out, where the second comes before anything is named."""
        if not self._plainly(text):
            return 0
        ends = [(at, mark) for mark in (self.quotes, ":", "}") if (at := text.find(mark, self.at)) >= 0]
        return -1 if not ends else 1 if min(ends)[1] == self.quotes else 0

    def _within(self, text: str, rest: str) -> int:
        if rest[0] == "\\" and self._quote != self.quotes:
            return 2 if len(rest) > 1 else -1
        if self._quote.startswith(rest) and self._quote != rest:
            return -1
        if not rest.startswith(self._quote):
            return 1
        behind = text[self.at + len(self._quote) :].lstrip()
        if not behind and not self.quotes:
            return -1
        if self.quotes or behind[0] in f",:{_CLOSES}":
            width, self._quote = len(self._quote), ""
            return width
        return 1


@dataclass(slots=True, eq=False)
class _Arguments:
    """Of one call: pieces of JSON from `name`, a mark, and a value each."""

    schema: Mapping[str, Any]
    keys: list[str] = field(default_factory=list)

    def value_schema(self, key: str) -> object:
        return self.schema.get("properties", {}).get(key)

    def unnamed(self) -> str | None:
        """The parameter that a value without a name is for: the next one in the schema's order."""
        return next((key for key in self.schema.get("properties", {}) if key not in self.keys), None)

    def member(self, key: str, written: str) -> str:
        lead = ", " if self.keys else "{"
        self.keys.append(key)
        return f"{lead}{json.dumps(key, ensure_ascii=False)}: {written}"

    def closed(self) -> str:
        return "}" if self.keys else "{}"


_PYTHON_NAME = re.compile(rf"({NAME.pattern})\s*\(")
_PYTHON_KEY = re.compile(r"([^\s=,()'\"\[\]{}]+)\s*=(?!=)\s*")
_PYTHON_KEY_BEGUN = re.compile(r"[^\s=,()'\"\[\]{}]*\s*=?")


@dataclass(slots=True, eq=False)
class PythonCalls:
    """`[name(key=value, ...), ...]`, or calls in lines of their own; `names`: the only functions that count, None: all.

    An argument is told once it has ended.
    """

    schemas: Mapping[str, Mapping[str, Any]]
    names: Collection[str] | None = None
    state: State = State.OPEN
    rest: str = ""
    raw: str = ""
    _text: str = ""
    _any: bool = False
    _listed: bool = False
    _arguments: _Arguments | None = None
    _key: str | None = None
    _extent: Extent | None = None
    _json: JsonCalls | None = None

    @property
    def pending(self) -> str:
        return self._json.pending if self._json is not None else self._text if self._arguments is None else ""

    def feed(self, text: str) -> list[Piece]:
        if self._json is not None:
            return self._other(text)
        if not self._any:
            self.raw += text
            if re.match(r"\s*(\[\s*)?\{", self.raw):
                names = None if self.names is None else frozenset(self.names)
                self._json = JsonCalls(names, separators=";,")
                return self._other(self.raw)
        self._text += text
        made: list[Piece] = []
        before: object = None
        while self.state is State.OPEN and self._text and before != (before := (self._text, self._arguments, self._extent)):
            made += self._between() if self._arguments is None else self._within(self._arguments)
        return made

    def _other(self, text: str) -> list[Piece]:
        assert self._json is not None
        made = self._json.feed(text)
        self.state, self.rest, self.raw = self._json.state, self._json.rest, self._json.raw
        return made

    def _between(self) -> list[Piece]:
        lead = self._text.lstrip()
        if lead[:1] == "[" and not self._any and not self._listed:
            self._text, self._listed = lead[1:], True
            return []
        if self._any and lead[:1] == ("," if self._listed else ";"):
            self._text = lead[1:]
            return []
        if lead[:1] == "]" and self._any and self._listed:
            self.state, self.rest = State.DONE, lead[1:]
            return []
        found = _PYTHON_NAME.match(lead)
        if found and (self.names is None or found[1] in self.names):
            self._any, self._text = True, lead[found.end() :]
            self._arguments = _Arguments(self.schemas.get(found[1], {}))
            return [Name(found[1])]
        begun = lead.rstrip()
        if found or (begun and not NAME.fullmatch(begun)) or len(lead) > _LONGEST_HEAD:
            self.state, self.rest = State.DONE if self._any else State.FAILED, self._text
        return []

    def _within(self, arguments: _Arguments) -> list[Piece]:
        if self._extent is not None:
            return self._value(arguments, self._extent)
        lead = self._text.lstrip(" \t\r\n,")
        if lead[:1] == ")":
            self._text, self._arguments = lead[1:], None
            return [arguments.closed()]
        if found := _PYTHON_KEY.match(lead):
            self._key, self._text = found[1], lead[found.end() :]
            self._extent = Extent() if self._text else None
            if self._extent is None:  # `==` may yet come
                self._key, self._text = None, lead
            return []
        if lead and not _PYTHON_KEY_BEGUN.fullmatch(lead):
            self._key, self._text, self._extent = None, lead, Extent()
        return []

    def _value(self, arguments: _Arguments, extent: Extent) -> list[Piece]:
        end = extent.end(self._text)
        if end < 0:
            return []
        text, self._text, self._extent = self._text[:end], self._text[end:], None
        if self._key is None and text.startswith("**") and isinstance(members := loaded(python_value(text[2:], {}, {})), dict):
            return ["".join(arguments.member(key, json.dumps(item, ensure_ascii=False)) for key, item in members.items())]
        key = self._key if self._key is not None else arguments.unnamed()
        if key is None or not text.strip():
            self._text = self._text if self._text[:1] in ",)" else self._text[1:]  # a bracket that was never opened
            return []
        written = python_value(text, arguments.value_schema(key), arguments.schema)
        return [arguments.member(key, written)]


@dataclass(slots=True, eq=False)
class BracesCall:
    """`call:name{key:value,...}`, whose texts stand between `quotes`."""

    quotes: str
    schemas: Mapping[str, Mapping[str, Any]]
    state: State = State.OPEN
    rest: str = ""
    raw: str = ""
    pending: str = ""
    _text: str = ""
    _arguments: _Arguments | None = None
    _key: str = ""
    _extent: Extent | None = None

    def feed(self, text: str) -> list[Piece]:
        self._text += text
        made: list[Piece] = []
        if self._arguments is None:
            self.raw += text
            made = self._begin()
        before: object = None
        while self._arguments is not None and self.state is State.OPEN and before != (before := (self._text, self._extent)):
            made += self._within(self._arguments)
        return made

    def _begin(self) -> list[Piece]:
        lead = self._text.lstrip()
        found = re.match(rf"call:\s*({NAME.pattern})\s*\{{", lead)
        if found:
            self._text, self._arguments = lead[found.end() :], _Arguments(self.schemas.get(found[1], {}))
            return [Name(found[1])]
        if not ("call:".startswith(lead) or re.fullmatch(rf"call:\s*({NAME.pattern})?\s*", lead)) or len(lead) > _LONGEST_HEAD:
            self.state = State.FAILED
        return []

    def _within(self, arguments: _Arguments) -> list[Piece]:
        if self._extent is not None:
            return self._value(arguments, self._extent)
        lead = self._text.lstrip(" \t\r\n,")
        if lead[:1] == "}":
            self.state, self.rest = State.DONE, lead[1:]
            return [arguments.closed()]
        head, found, behind = lead.partition(":")
        if found:
            self._key, self._text = head.replace(self.quotes, "").strip().strip('"'), behind
            self._extent = Extent(self.quotes)
        elif len(lead) > _LONGEST_HEAD:
            self.state, self.rest = State.DONE, self._text
            return [arguments.closed()]
        return []

    def _value(self, arguments: _Arguments, extent: Extent) -> list[Piece]:
        end = extent.end(self._text)
        if end < 0:
            return []
        text, self._text, self._extent = self._text[:end], self._text[end:], None
        if self._text[:1] not in (",", "}"):
            self._text = self._text[1:]  # a bracket that was never opened
        return [arguments.member(self._key, braced_value(text, self.quotes, arguments.value_schema(self._key), arguments.schema))]
