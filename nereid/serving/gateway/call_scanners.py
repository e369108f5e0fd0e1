"""Calls of tools read as they are written, character by character, where they are JSON; knows no marks around them.

A scanner yields `Name`, then pieces of the arguments' JSON as text. Until it has given a name nothing is lost: where a call turns
out to be none, it has FAILED and `raw` is all that it has read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from nereid.serving.gateway.call_objects import SPACE, CallObject, KeyedObject, Name, Piece, State

_FENCE = "```json"


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
class JsonCalls:
    """One call's object, a list of them, or several with one of `separators` between them, in a fence or in none.

    `keyed`: an object's member is named by the function.
    """

    names: frozenset[str] | None = None
    separators: str = ""
    keyed: bool = False
    state: State = State.OPEN
    rest: str = ""
    _read: list[str] = field(default_factory=list)
    """Since the beginning, or since the last call that has been told."""
    _in_list: bool = False
    _call: CallObject | KeyedObject | None = None
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
        if letter in SPACE or (self._any and letter in ("," if self._in_list else self.separators)):
            return []
        if (_FENCE[:3] if self._any else _FENCE).startswith(self.raw.strip()):
            return []
        if letter == "{":
            self._call = KeyedObject(self.names) if self.keyed else CallObject(self.names)
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
