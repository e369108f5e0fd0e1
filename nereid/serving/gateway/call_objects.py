"""Objects of JSON that are calls of tools, read as they are written, character by character; knows no marks around them.

They yield `Name`, then pieces of the arguments' JSON as text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Names of functions: OpenAI's letters, and the point that some clients' names have."""
SPACE = " \n\r\t"
_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters")


class State(Enum):
    OPEN = auto()
    DONE = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Name:
    """A call begins; `id`: the one that the model has given it."""

    name: str
    id: str = ""


Piece = Name | str


@dataclass(slots=True, eq=False)
class Nesting:
    """How deep in JSON's objects and lists the next character is, and whether it is in a text."""

    depth: int = 0
    in_string: bool = False
    _escaped: bool = False

    def take(self, letter: str) -> None:
        if self.in_string:
            self.in_string = self._escaped or letter != '"'
            self._escaped = letter == "\\" and not self._escaped
        elif letter == '"':
            self.in_string = True
        elif letter in "{[":
            self.depth += 1
        elif letter in "}]":
            self.depth -= 1


@dataclass(slots=True, eq=False)
class CallObject:
    """`{"name": ..., "arguments": {...}}`, members in any order, also within a member `function`, as OpenAI's objects have them;
    `names`: the only functions that count, None: all.
    """

    names: frozenset[str] | None = None
    state: State = State.OPEN
    name: str | None = None
    _text: list[str] = field(default_factory=list)
    _nesting: Nesting = field(default_factory=Nesting)
    _expects: str = "object"
    _key: str = ""
    _streams: bool = False
    _arguments: str | None = None
    _wrapped: int = 0
    """Objects that the members stand in, beside the first."""

    def take(self, letter: str) -> list[Piece]:
        """One more character, and what is known by it."""
        if self._nesting.in_string or self._nesting.depth > 1:
            return self._within(letter)
        if letter in SPACE:
            return self._value_ends() if self._expects == "scalar" else []
        return self._outer(letter)

    def _outer(self, letter: str) -> list[Piece]:
        """Between the members of the call's own object."""
        made: list[Piece] = []
        if self._expects == "scalar" and letter in ",}":
            made = self._value_ends()
        if self._expects == "object" and letter == "{":
            self._nesting.take(letter)
            self._expects = "key"
        elif self._expects in ("key", "value") and letter == '"':
            self._nesting.take(letter)
            self._text = [letter]
        elif self._expects == "colon" and letter == ":":
            self._expects = "value"
        elif self._expects == "value" and letter == "{" and self._key == "function" and self.name is None:
            self._wrapped, self._expects = self._wrapped + 1, "key"
        elif self._expects == "value" and letter in "{[":
            self._nesting.take(letter)
            self._text = [letter]
            self._streams = letter == "{" and self._key in _ARGUMENTS and self.name is not None and self._arguments is None
            if self._streams:
                made.append(letter)
        elif self._expects == "value" and (letter.isalnum() or letter == "-"):
            self._text, self._expects = [letter], "scalar"
        elif self._expects == "scalar":
            self._text.append(letter)
        elif self._expects == "comma" and letter == ",":
            self._expects = "key"
        elif self._expects in ("comma", "key") and letter == "}" and self._wrapped:
            self._wrapped, self._expects = self._wrapped - 1, "comma"
        elif self._expects in ("comma", "key") and letter == "}":
            made += self._close()
        else:
            self.state = State.FAILED
        return made

    def _within(self, letter: str) -> list[Piece]:
        """Within a text, or a value that is an object or a list."""
        nesting = self._nesting
        was_text = nesting.in_string
        self._text.append(letter)
        nesting.take(letter)
        made: list[Piece] = [letter] if self._streams else []
        if nesting.depth == 1 and not nesting.in_string:
            made += self._text_ends() if was_text else self._value_ends()
        return made

    def _text_ends(self) -> list[Piece]:
        if self._expects == "value":
            return self._value_ends()
        key = _loaded("".join(self._text))
        self._key, self._expects = key if isinstance(key, str) else "", "colon"
        return []

    def _value_ends(self) -> list[Piece]:
        raw, self._expects = "".join(self._text), "comma"
        if self._streams:
            self._streams, self._arguments = False, raw
        elif self._key in _NAMES and self.name is None:
            return self._named(_loaded(raw))
        elif self._key in _ARGUMENTS and self._arguments is None:
            value = _loaded(raw)
            self._arguments = _whole(value) if isinstance(value, str) else "{}" if value is None else raw
            if self.name is not None:
                return [self._arguments]
        return []

    def _named(self, name: Any) -> list[Piece]:
        if not isinstance(name, str) or not NAME.fullmatch(name) or (self.names is not None and name not in self.names):
            self.state = State.FAILED
            return []
        self.name = name
        return [Name(name)] if self._arguments is None else [Name(name), self._arguments]

    def _close(self) -> list[Piece]:
        self.state = State.DONE if self.name is not None else State.FAILED
        return ["{}"] if self.name is not None and self._arguments is None else []


def _whole(text: str) -> str:
    """JSON in which half of a surrogate pair, which cannot be sent, is written as its escape."""
    return text.encode(errors="backslashreplace").decode()


def _loaded(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=no_json)
    except (ValueError, RecursionError):
        return None


def no_json(word: str) -> Any:
    """For what Python's json takes and JSON has not."""
    raise ValueError(f"{word} is not JSON")


@dataclass(slots=True, eq=False)
class KeyedObject:
    """`{"name": {...}}`, a function's name and its arguments, also several in one object; or what `CallObject` reads.

    `names`: the only functions that count, None: all.
    """

    names: frozenset[str] | None = None
    state: State = State.OPEN
    name: str | None = None
    _text: str = ""
    """Since the object's, or a member's, beginning, up to its value."""
    _expects: str = "object"
    _nesting: Nesting = field(default_factory=Nesting)
    """Of the member's value, or of its key, which is outside of all."""
    _other: CallObject | None = None

    def take(self, letter: str) -> list[Piece]:
        """One more character, and what is known by it."""
        if self._other is not None:
            return self._others(self._other, letter)
        if self._nesting.depth:
            self._nesting.take(letter)
            return [letter]
        self._text += letter
        if self._nesting.in_string:
            self._nesting.take(letter)
            self._expects = "key" if self._nesting.in_string else "colon"
        elif letter in SPACE:
            pass
        elif self._expects == "value":
            return self._value_begins(letter)
        elif (self._expects, letter) in _KEYED_STEPS:
            self._expects = _KEYED_STEPS[self._expects, letter]
            self._nesting.in_string = letter == '"'
        elif self._expects == "comma" and letter == "}":
            self.state = State.DONE
        else:
            self.state = State.FAILED
        return []

    def _value_begins(self, letter: str) -> list[Piece]:
        key = _loaded(self._text[self._text.index('"') : self._text.rindex(":")].strip())
        if letter != "{" and self.name is None and key in (*_NAMES, "type", "id"):
            self._other = CallObject(self.names)
            return [piece for read in self._text for piece in self._others(self._other, read)]
        known = isinstance(key, str) and NAME.fullmatch(key) and (self.names is None or key in self.names)
        if letter != "{" or not known:
            self.state = State.FAILED
            return []
        self._nesting.take(letter)
        self.name, self._text, self._expects = str(key), "", "comma"
        return [Name(self.name), "{"]

    def _others(self, other: CallObject, letter: str) -> list[Piece]:
        made = other.take(letter)
        self.state, self.name = other.state, other.name
        return made


_KEYED_STEPS = {("object", "{"): "key", ("key", '"'): "key", ("colon", ":"): "value", ("comma", ","): "key"}
"""What is expected next, by what was and what has come."""
