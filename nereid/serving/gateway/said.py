"""What an answer says, piece by piece: thoughts, text, calls of tools; knows no form in which a model writes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """The answer's call number `index` begins."""

    index: int
    id: str
    name: str
    custom: bool = False
    """Whether it is one of a custom tool: its input follows, and no arguments."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Input:
    """A piece of the text that a custom tool is called with."""

    index: int
    text: str


Said = Reasoning | Text | Call | Arguments | Input


def held_back(text: str, *marks: str) -> int:
    """Length of the longest end of a text that may be the beginning of a mark."""
    most = min(len(text), max((len(mark) - 1 for mark in marks), default=0))
    for length in range(most, 0, -1):
        tail = text[-length:]
        if any(mark.startswith(tail) for mark in marks):
            return length
    return 0


def merged(said: list[Said]) -> list[Said]:
    """Neighbouring pieces of one thing as one."""
    made: list[Said] = []
    for item in said:
        last = made[-1] if made else None
        if isinstance(item, Text) and isinstance(last, Text):
            made[-1] = Text(last.text + item.text)
        elif isinstance(item, Reasoning) and isinstance(last, Reasoning):
            made[-1] = Reasoning(last.text + item.text)
        elif isinstance(item, Arguments) and isinstance(last, Arguments) and item.index == last.index:
            made[-1] = Arguments(item.index, last.text + item.text)
        elif isinstance(item, Input) and isinstance(last, Input) and item.index == last.index:
            made[-1] = Input(item.index, last.text + item.text)
        else:
            made.append(item)
    return made
