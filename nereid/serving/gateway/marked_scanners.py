"""Calls of tools read as they are written, where a mark or tags stand within them; beside what call_scanners reads."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nereid.serving.gateway.call_scanners import NAME, JsonCalls, Name, Piece, State
from nereid.serving.gateway.tag_values import json_of


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
    """`name[ARGS]{...}`, or what `JsonCalls` reads; an id between name and arguments is passed over.

    The mark before the arguments may be left out behind one of `names`.
    """

    middle: str
    names: Collection[str] = ()
    state: State = State.OPEN
    rest: str = ""
    raw: str = ""
    pending: str = ""
    _json: JsonCalls | None = None
    _object: JsonObject | None = None

    def feed(self, text: str) -> list[Piece]:
        if self._json is not None:
            return self._other(text)
        if self._object is not None:
            return self._value(text)
        self.raw += text
        if self.raw.lstrip()[:1] in ("{", "["):
            self._json = JsonCalls()
            return self._other(self.raw)
        head, mark, after = self.raw.partition(self.middle)
        name, bare = head.partition("[")[0].strip(), head.partition("{")[0]
        if bare != head:  # arguments, and no mark before them
            name, mark, after = bare.strip(), "{", self.raw[len(bare) :]
        if mark and NAME.fullmatch(name) and (mark == self.middle or name in self.names):
            self._object = JsonObject()
            return [Name(name), *self._value(after)]
        if mark or len(head) > 200 or (name and not NAME.fullmatch(name)):
            self.state = State.FAILED
        return []

    def _other(self, text: str) -> list[Piece]:
        assert self._json is not None
        made = self._json.feed(text)
        self.state, self.rest, self.raw, self.pending = self._json.state, self._json.rest, self._json.raw, self._json.pending
        return made

    def _value(self, text: str) -> list[Piece]:
        assert self._object is not None
        piece, self.rest = self._object.feed(text)
        if self._object.ended:
            self.state = State.DONE
        return [piece] if piece else []


_PARAMETER, _PARAMETER_END, _FUNCTION_END = "<parameter=", "</parameter>", "</function>"
_CALL_END = re.compile(r"</function>\s*</\w*:?tool_call>")


@dataclass(slots=True, eq=False)
class TagsCall:
    """`<function=name><parameter=key>value</parameter>...</function>`; `schemas` are the functions' parameters by name.

    The end of a value may be left out.
    """

    schemas: Mapping[str, Mapping[str, Any]]
    state: State = State.OPEN
    rest: str = ""
    raw: str = ""
    pending: str = ""
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
            self.state, self.rest = self._json.state, self._json.rest
            self.raw, self.pending = self._json.raw, self._json.pending
            return made
        self._text += text
        if self._name:
            return self._parameters() if ">" in text else []  # all marks end so
        self.raw += text
        return self._begin()

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
            if head == _FUNCTION_END[:-1]:
                self.state, self.rest = State.DONE, after
                made += "}" if self._count else "{}"
            elif head.startswith(_PARAMETER):
                end = self._end(after)
                if end < 0:
                    break
                made += self._member(head.removeprefix(_PARAMETER), after[:end])
                self._text = after[end:].removeprefix(_PARAMETER_END)
            else:  # it has begun, so that it has to end: this is none of a call's parts
                self.state, self.rest = State.DONE, self._text
                made += "}" if self._count else "{}"
        return [made] if made else []

    def _end(self, text: str) -> int:
        """Where a value ends: at its mark, or where that was left out, at the next parameter that there is, or at the call's."""
        found = [text.find(f"\n{_PARAMETER}{key}>") for key in self.schemas.get(self._name, {}).get("properties", {})]
        found += [text.find(_PARAMETER_END), match.start() if (match := _CALL_END.search(text)) else -1]
        return min((at for at in found if at >= 0), default=-1)

    def _member(self, key: str, value: str) -> str:
        schema = self.schemas.get(self._name, {})
        text = value.removeprefix("\n").removesuffix("\n")
        written = json_of(text, schema.get("properties", {}).get(key), schema)
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
    pending: str = ""
    _text: str = ""
    _any: bool = False
    _object: JsonObject | None = None

    def feed(self, text: str) -> list[Piece]:
        if not self._any:
            self.raw += text
        self._text += text
        made: list[Piece] = []
        before: tuple[str, JsonObject | None] | None = None
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
