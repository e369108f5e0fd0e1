"""Calls of tools read as they are written, where a function and its parameters stand in tags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.call_scanners import NAME, JsonCalls, Name, Piece, State
from nereid.serving.gateway.said import held_back
from nereid.serving.gateway.tag_values import is_json, is_written_plainly, json_of
from nereid.serving.gateway.tags import Tags

_LONGEST_TAG = 300
_NAME = re.compile(rf"{NAME.pattern}($|[\"' ])")


@dataclass(slots=True, eq=False)
class TagsCall:
    """`<function=name><parameter=key>value</parameter>...</function>`, or other tags; `schemas` are the functions' parameters by
    name, `end` is the mark behind a call.

    A parameter that is a plain text is told while it is written, any other once it has ended. The end of a value may be left out.
    """

    tags: Tags
    schemas: Mapping[str, Mapping[str, Any]]
    end: str = ""
    state: State = State.OPEN
    rest: str = ""
    raw: str = ""
    pending: str = ""
    _text: str = ""
    _name: str = ""
    _keys: list[str] = field(default_factory=list)
    """Parameters so far."""
    _value: _Value | None = None
    _json: JsonCalls | None = None

    def feed(self, text: str) -> list[Piece]:
        if self._json is None and not self._name and (self.raw + text).lstrip()[:1] in ("{", "["):
            self._json = JsonCalls()
            text, self.raw = self.raw + text, ""
        if self._json is not None:
            made = self._json.feed(text)
            self.state, self.rest = self._json.state, self._json.rest
            self.raw, self.pending = self._json.raw, self._json.pending
            return made
        self._text += text
        if not self._name:
            self.raw += text
            return self._begin()
        if self._value is not None and not self._value.plain and ">" not in text:
            return []  # all marks end so
        return self._parts()

    def _begin(self) -> list[Piece]:
        lead = self._text.lstrip()
        found = self.tags.head.match(lead)
        if found and NAME.fullmatch(found[1]):
            self._name, self._text = found[1], lead[found.end() :]
            return [Name(self._name), *self._parts()]
        if found or not self._may_begin(lead):
            self.state = State.FAILED
        return []

    def _may_begin(self, lead: str) -> bool:
        mark = self.tags.function
        if len(lead) <= len(mark):
            return mark.startswith(lead)
        name = lead[len(mark) :] if mark else lead.rstrip()
        return lead.startswith(mark) and len(lead) < _LONGEST_TAG and _NAME.match(name) is not None

    def _parts(self) -> list[Piece]:
        made = ""
        before: tuple[str, object] | None = None
        while self.state is State.OPEN and before != (before := (self._text, self._value)):
            made += self._between() if self._value is None else self._within(self._value)
        return [made] if made else []

    def _between(self) -> str:
        """Between parameters; what is no part of a call ends it: it has begun."""
        lead = self._text.lstrip()
        closing, mark = self.tags.closing, self.tags.parameter
        if closing and lead.startswith(closing):
            return self._closed(lead.removeprefix(closing))
        if found := self.tags.key.match(lead):
            self._text = lead[found.end() :]
            key, says_text = found["key"].strip(), found.groupdict().get("text")
            schema = self.schemas.get(self._name, {}).get("properties", {}).get(key)
            self._value = _Value(key, schema, None if says_text is None else says_text == "true")
            return self._value.lead(bool(self._keys))
        waits = mark.startswith(lead) or (closing and closing.startswith(lead)) or lead.startswith(mark)
        return "" if waits and len(lead) < _LONGEST_TAG else self._closed(self._text)

    def _closed(self, rest: str) -> str:
        self.state, self.rest = State.DONE, rest
        return "}" if self._keys else "{}"

    def _within(self, value: _Value) -> str:
        at, mark = self._end()
        padded = self.tags.padded
        if value.plain:
            if not value.begun and padded:
                if not self._text:
                    return ""
                if at != 0 and self._text.startswith("\n"):
                    self._text, at = self._text[1:], at - 1
            value.begun = True
            sure = at if at >= 0 else self._sure()
            piece, self._text = self._text[:sure], self._text[sure:]
            if at >= 0 and padded:
                piece = piece.removesuffix("\n")
            made = json.dumps(piece, ensure_ascii=False)[1:-1]
        elif at >= 0 and (at := self._end_of_json(at, mark)) >= 0:
            text, self._text = self._text[:at], self._text[at:]
            text = text.removeprefix("\n").removesuffix("\n") if padded else text
            made = value.json(text, self.schemas.get(self._name, {}))
        else:
            return ""
        if at < 0:
            return made
        self._text = self._text.removeprefix(mark)
        self._keys.append(value.key)
        self._value = None
        return made + ('"' if value.plain else "")

    def _end(self) -> tuple[int, str]:
        """Where a value ends, and with which mark: with its own, or, where that was left out, before the next parameter that
        there is, or before the call's end."""
        own = self.tags.ended
        found = [(at, own) for at in (self._text.find(own),) if at >= 0]
        found += [(at, "") for tag in self._next() if (at := self._text.find(tag)) >= 0]
        if match := self._call_end.search(self._text):
            found.append((match.start(), ""))
        return min(found, default=(-1, ""))

    def _end_of_json(self, at: int, mark: str) -> int:
        """Where a value that is written as JSON ends, its first mark being at `at`; a text within it may have such marks, too.

        -1: that cannot be said yet.
        """
        while mark and self._text.lstrip()[:1] in ('"', "{", "[") and not is_json(self._text[:at]):
            behind = self._text[at + len(mark) :].lstrip()
            follows = [tag for tag in (self.tags.parameter, self.tags.closing or self.end) if tag]
            if any(behind.startswith(tag) for tag in follows):
                return at
            if any(tag.startswith(behind) for tag in follows):
                return -1
            at = self._text.find(mark, at + 1)
            if at < 0:
                return -1
        return at

    def _next(self) -> list[str]:
        """Tags of the parameters that have not come yet."""
        known = self.schemas.get(self._name, {}).get("properties", {})
        lead = "\n" if self.tags.padded else ""
        written = {*self._keys, self._value.key if self._value else ""}
        return [f"{lead}{self.tags.parameter}{key}{self.tags.keyed}" for key in known if key not in written]

    @property
    def _call_end(self) -> re.Pattern[str]:
        closing = self.tags.closing
        return re.compile(rf"{re.escape(closing)}\s*{re.escape(self.end)}" if closing else r"(?!)")

    def _sure(self) -> int:
        """How much of a plain text is none of the marks that may end it."""
        text = self._text
        closing = self.tags.closing
        lead = "\n" if self.tags.padded else ""
        sure = len(text) - held_back(text, f"{lead}{self.tags.ended}", self.tags.ended, closing, *self._next())
        at = text.rfind(closing) if closing else -1
        if 0 <= at < sure and self.end.startswith(text[at + len(closing) :].lstrip()):
            sure = at
        return sure - 1 if self.tags.padded and text[:sure].endswith("\n") else sure


@dataclass(slots=True, eq=False)
class _Value:
    """A parameter's value that is being read; `says_text`: what its tag says of it."""

    key: str
    schema: object
    says_text: bool | None
    begun: bool = False

    @property
    def plain(self) -> bool:
        return self.says_text is not False and (self.schema is None or is_written_plainly(self.schema))

    def lead(self, follows: bool) -> str:
        return f"{', ' if follows else '{'}{json.dumps(self.key, ensure_ascii=False)}: {chr(34) if self.plain else ''}"

    def json(self, text: str, root: Mapping[str, Any]) -> str:
        schema = {} if self.schema is None else self.schema
        return json_of(text, schema, root, text_first=self.says_text is True)
