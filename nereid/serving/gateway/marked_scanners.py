"""Calls of tools read as they are written, where a mark or tags stand within them; beside what call_scanners reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nereid.serving.gateway.call_scanners import NAME, JsonCalls, Name, Piece, State, no_json


@dataclass(slots=True, eq=False)
class JsonObject:
    """An object of JSON up to its last brace, or up to a mark where it is broken off: outside of texts JSON has no `<`."""

    ended: bool = False
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False

    def feed(self, text: str) -> tuple[str, str]:
        """What belongs to it, and what does not."""
        for place, letter in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter == '"':
                self._in_string = True
            elif letter == "<":
                self.ended = True
                return text[:place], text[place:]
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.ended = True
                    return text[: place + 1], text[place + 1 :]
        return text, ""


@dataclass(slots=True, eq=False)
class NamedCall:
    """`name[ARGS]{...}`, or what `JsonCalls` reads; an id between name and arguments is passed over."""

    middle: str
    state: State = State.OPEN
    rest: str = ""
    raw: str = ""
    _json: JsonCalls | None = None
    _object: JsonObject | None = None

    def feed(self, text: str) -> list[Piece]:
        if self._json is not None:
            return self._other(text)
        if self._object is not None:
            return self._value(text)
        self.raw += text
        head, found, after = self.raw.partition(self.middle)
        if self.raw.lstrip()[:1] in ("{", "["):
            self._json = JsonCalls()
            return self._other(self.raw)
        name = head.partition("[")[0].strip()
        if not found:
            if len(head) > 200 or (name and not NAME.fullmatch(name)):
                self.state = State.FAILED
            return []
        if not NAME.fullmatch(name):
            self.state = State.FAILED
            return []
        self._object = JsonObject()
        return [Name(name), *self._value(after)]

    def _other(self, text: str) -> list[Piece]:
        assert self._json is not None
        made = self._json.feed(text)
        self.state, self.rest, self.raw = self._json.state, self._json.rest, self._json.raw
        return made

    def _value(self, text: str) -> list[Piece]:
        assert self._object is not None
        piece, self.rest = self._object.feed(text)
        if self._object.ended:
            self.state = State.DONE
        return [piece] if piece else []


def is_written_plainly(schema: object) -> bool:
    """Whether a parameter of this schema stands in its tag as it is, and not as JSON: a text that nothing bounds."""
    if not isinstance(schema, dict) or schema.get("type") != "string":
        return False
    values = schema.get("enum", ())
    return not (schema.keys() - {"type", "title", "description", "default", "examples", "enum"}) and all(
        isinstance(value, str) and value.strip() == value and "<" not in value and value for value in values
    )


@dataclass(slots=True, eq=False)
class TagsCall:
    """`<function=name><parameter=key>value</parameter>...</function>`; `schemas` are the functions' parameters by name.

    A value is its text where the parameter is one, else JSON, and where it is none a text after all.
    """

    schemas: Mapping[str, Mapping[str, Any]]
    state: State = State.OPEN
    rest: str = ""
    raw: str = ""
    _text: str = ""
    _name: str = ""
    _count: int = 0
    _json: JsonCalls | None = None

    def feed(self, text: str) -> list[Piece]:
        if self._json is None and not self._name and (self.raw + text).lstrip()[:1] in ("{", "["):
            self._json = JsonCalls()
            text, self.raw = self.raw + text, ""
        if self._json is not None:
            made = self._json.feed(text)
            self.state, self.rest, self.raw = self._json.state, self._json.rest, self._json.raw
            return made
        self.raw += text
        self._text += text
        return self._begin() if not self._name else self._parameters()

    def _begin(self) -> list[Piece]:
        lead, opening = self._text.lstrip(), "<function="
        head, found, after = lead.partition(">")
        if not lead.startswith(opening[: len(lead)]) or (found and not NAME.fullmatch(head.removeprefix(opening))):
            self.state = State.FAILED
        if not found or self.state is State.FAILED:
            return []
        self._name, self._text = head.removeprefix(opening), after
        return [Name(self._name), *self._parameters()]

    def _parameters(self) -> list[Piece]:
        made = ""
        while self.state is State.OPEN:
            head, found, after = self._text.lstrip().partition(">")
            if not found:
                break
            if head == "</function":
                self.state, self.rest = State.DONE, after
                made += "}" if self._count else "{}"
            elif head.startswith("<parameter="):
                value, closed, behind = after.partition("</parameter>")
                if not closed:
                    break
                made += self._member(head.removeprefix("<parameter="), value)
                self._text = behind
            else:  # it has begun, so that it has to end: this is none of a call's parts
                self.state, self.rest = State.DONE, self._text
                made += "}" if self._count else "{}"
        return [made] if made else []

    def _member(self, key: str, value: str) -> str:
        schema = self.schemas.get(self._name, {}).get("properties", {}).get(key)
        text = value.removeprefix("\n").removesuffix("\n")
        written = json.dumps(text, ensure_ascii=False)
        if not is_written_plainly(schema) and schema is not None:
            try:
                json.loads(text, parse_constant=no_json)
                written = text.strip()
            except (ValueError, RecursionError):
                pass
        lead = ", " if self._count else "{"
        self._count += 1
        return f"{lead}{json.dumps(key, ensure_ascii=False)}: {written}"


_FENCE = re.compile(r"```(?:json)?")
_LONGEST_HEAD = 300
"""Of a call's name with what stands around it."""


@dataclass(slots=True, eq=False, kw_only=True)
class SectionCalls:
    """DeepSeek's calls up to the section's `end`, each from `opening` to `closing`: a kind, `middle`, the name, and the arguments
    in a fence; or the name, `middle` and the arguments.

    Models mix the two, and leave out marks.
    """

    opening: str
    closing: str
    middle: str
    end: str
    state: State = State.OPEN
    rest: str = ""
    raw: str = ""
    _text: str = ""
    _any: bool = False
    _object: JsonObject | None = None

    def feed(self, text: str) -> list[Piece]:
        if not self._any:
            self.raw += text
        self._text += text
        made: list[Piece] = []
        before = None
        while self.state is State.OPEN and self._text and before != (before := (self._text, self._object)):
            made += self._between() if self._object is None else self._value(self._object)
        return made

    def _between(self) -> list[Piece]:
        lead = self._text.lstrip()
        for mark in (self.closing, "```"):
            if self._any and lead.startswith(mark):
                self._text = lead.removeprefix(mark)
                return []
        if lead.startswith(self.opening):
            return self._head(lead.removeprefix(self.opening))
        if lead.startswith(self.end) and self._any:
            self.state, self.rest = State.DONE, lead.removeprefix(self.end)
        elif not any(mark.startswith(lead) for mark in (self.opening, self.closing, self.end, "```")):
            self.state, self.rest = State.DONE if self._any else State.FAILED, self._text
        return []

    def _head(self, text: str) -> list[Piece]:
        """What stands before the arguments; they may be left out."""
        ends = [at for mark in ("{", self.closing) if (at := text.find(mark)) >= 0]
        head = text[: min(ends)] if ends else text
        if not ends and len(head) <= _LONGEST_HEAD:
            return []
        kind, _, name = (part.strip() for part in _FENCE.sub("", head).partition(self.middle))
        name = (kind if name in ("", "null") else name).rpartition("\n")[2].strip()
        if not ends or not NAME.fullmatch(name):
            self.state, self.rest = State.DONE if self._any else State.FAILED, self._text
            return []
        self._any, self._text = True, text[len(head) :]
        if not self._text.startswith("{"):
            return [Name(name), "{}"]
        self._object = JsonObject()
        return [Name(name)]

    def _value(self, value: JsonObject) -> list[Piece]:
        piece, self._text = value.feed(self._text)
        self._object = None if value.ended else value
        return [piece] if piece else []
