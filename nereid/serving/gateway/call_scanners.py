"""Calls of tools read as they are written, character by character, where they are JSON; knows no marks around them.

A scanner yields `Name`, then pieces of the arguments' JSON as text. Until it has given a name nothing is lost: where a call turns
out to be none, it has FAILED and `raw` is all that it has read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Names of functions: OpenAI's letters, and the point that some clients' names have."""
_SPACE = " \n\r\t"
_FENCE = "```json"
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


class Scanner(Protocol):
    """`rest` is what it was given and did not need, once it is DONE; `pending` what may yet turn out to be no call."""

    state: State
    rest: str

    @property
    def raw(self) -> str: ...

    @property
    def pending(self) -> str: ...

    def feed(self, text: str) -> list[Piece]: ...


@dataclass(slots=True, eq=False)
class CallObject:
    """`{"name": ..., "arguments": {...}}`, members in any order, also within a member `function`, as OpenAI's objects have them;
    `names`: the only functions that count, None: all.
    """

    names: frozenset[str] | None = None
    state: State = State.OPEN
    name: str | None = None
    _text: list[str] = field(default_factory=list)
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    _expects: str = "object"
    _key: str = ""
    _streams: bool = False
    _arguments: str | None = None
    _wrapped: int = 0
    """Objects that the members stand in, beside the first."""

    def take(self, letter: str) -> list[Piece]:
        """One more character, and what is known by it."""
        if self._in_string:
            self._text.append(letter)
            return self._in_text(letter)
        if self._depth > 1:
            return self._deeper(letter)
        if letter in _SPACE:
            return self._value_ends() if self._expects == "scalar" else []
        return self._outer(letter)

    def _outer(self, letter: str) -> list[Piece]:
        """Between the members of the call's own object."""
        made: list[Piece] = []
        if self._expects == "scalar" and letter in ",}":
            made = self._value_ends()
        if self._expects == "object" and letter == "{":
            self._depth, self._expects = 1, "key"
        elif self._expects in ("key", "value") and letter == '"':
            self._text, self._in_string = [letter], True
        elif self._expects == "colon" and letter == ":":
            self._expects = "value"
        elif self._expects == "value" and letter == "{" and self._key == "function" and self.name is None:
            self._wrapped, self._expects = self._wrapped + 1, "key"
        elif self._expects == "value" and letter in "{[":
            self._text, self._depth = [letter], 2
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

    def _in_text(self, letter: str) -> list[Piece]:
        if self._escaped:
            self._escaped = False
        elif letter == "\\":
            self._escaped = True
        elif letter == '"':
            self._in_string = False
            if self._depth == 1:
                return self._text_ends()
        return [letter] if self._streams else []

    def _deeper(self, letter: str) -> list[Piece]:
        """Within a value that is an object or a list."""
        self._text.append(letter)
        made: list[Piece] = [letter] if self._streams else []
        if letter == '"':
            self._in_string = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            if self._depth == 1:
                made += self._value_ends()
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
        self._depth, self.state = 0, State.DONE if self.name is not None else State.FAILED
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
class JsonCalls:
    """One call's object, a list of them, or several with one of `separators` between them, in a fence or in none."""

    names: frozenset[str] | None = None
    separators: str = ""
    state: State = State.OPEN
    rest: str = ""
    _read: list[str] = field(default_factory=list)
    """Since the beginning, or since the last call that has been told."""
    _in_list: bool = False
    _call: CallObject | None = None
    _any: bool = False

    @property
    def raw(self) -> str:
        return "".join(self._read)

    @property
    def pending(self) -> str:
        return self.raw if self._any and self._call is not None and self._call.name is None else ""

    def feed(self, text: str) -> list[Piece]:
        made: list[Piece] = []
        for place, letter in enumerate(text):
            made += self._take(letter)
            if self.state is State.DONE:
                self.rest += text[place + 1 :]
            if self.state is State.FAILED:
                self._read.append(text[place + 1 :])
            if self.state is not State.OPEN:
                break
        return _joined(made)

    def _take(self, letter: str) -> list[Piece]:
        self._read.append(letter)
        if self._call is None:
            return self._outside(letter)
        made = self._call.take(letter)
        if any(isinstance(item, Name) for item in made):
            self._any = True
        if self._call.state is State.FAILED and self._call.name is None:
            self._ends_as_none()
        elif self._call.state is State.FAILED:
            self.state = State.DONE  # it has been told already: it ends where it stopped to be a call
        elif self._call.state is State.DONE:
            self._call, self._read = None, []
            if not self._in_list and not self.separators:
                self.state = State.DONE
        return made

    def _ends_as_none(self) -> None:
        """What has been read since the last call is none."""
        self.state = State.DONE if self._any else State.FAILED
        if self._any:
            self.rest = self.raw

    def _outside(self, letter: str) -> list[Piece]:
        if letter in _SPACE or (self._any and letter in ("," if self._in_list else self.separators)):
            return []
        if (_FENCE[:3] if self._any else _FENCE).startswith(self.raw.strip()):
            return []
        if letter == "{":
            self._call = CallObject(self.names)
            return self._call.take(letter)
        if letter == "[" and not self._any and not self._in_list:
            self._in_list = True
        elif letter == "]" and self._in_list:
            self.state = State.DONE
        else:
            self._ends_as_none()
        return []


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Characters become texts."""
    made: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and made and isinstance(made[-1], str):
            made[-1] += piece
        else:
            made.append(piece)
    return made
