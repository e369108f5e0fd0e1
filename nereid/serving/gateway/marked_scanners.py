"""Calls of tools read as they are written, where a mark stands within them; beside what call_scanners reads."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from nereid.serving.gateway.call_objects import NAME, Name, Nesting, Piece, State
from nereid.serving.gateway.call_scanners import JsonCalls


@dataclass(slots=True, eq=False)
class JsonObject:
    """An object of JSON up to its last brace, or up to a mark where it is broken off: outside of texts JSON has no `<`."""

    ended: bool = False
    _nesting: Nesting = field(default_factory=Nesting)

    def feed(self, text: str) -> tuple[str, str]:
        """What belongs to it, and what does not."""
        nesting = self._nesting
        for place, letter in enumerate(text):
            if letter == "<" and not nesting.in_string:
                self.ended = True
                return text[:place], text[place:]
            nesting.take(letter)
            if letter in "}]" and not nesting.in_string and nesting.depth <= 0:
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


_FENCE = re.compile(r"```(?:json)?")
_NUMBERED = re.compile(rf"(?:functions\.)?({NAME.pattern}):\d+")
_LONGEST_HEAD = 300
"""Of a call's name with what stands around it."""


@dataclass(slots=True, eq=False, kw_only=True)
class SectionCalls:
    """DeepSeek's calls up to the section's end, each from `opening` to `closing`: a kind, `middle`, the name, and the
    arguments in a fence; or the name, `middle` and the arguments. `numbered`: the name stands between `functions.` and a number,
    Kimi's id.

    Models mix the two, and leave out marks.
    """

    opening: str
    closing: str
    middle: str
    numbered: bool = False
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
        if not any(mark.startswith(lead) for mark in (self.opening, self.closing, "```")):
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
        number = _NUMBERED.fullmatch(name) if self.numbered else None
        call = Name(number[1], name if name.startswith("functions.") else "") if number else Name(name)
        if not ends or not NAME.fullmatch(call.name):
            self.state, self.rest = State.DONE if self._any else State.FAILED, self._text
            return []
        self._any, self._text = True, text[len(head) :]
        if not self._text.startswith("{"):
            return [call, "{}"]
        self._object = JsonObject()
        return [call]

    def _value(self, value: JsonObject) -> list[Piece]:
        piece, self._text = value.feed(self._text)
        self._object = None if value.ended else value
        return [piece] if piece else []
