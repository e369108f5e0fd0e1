"""What there is to say of a form in which a chat template has a model write its calls of tools; knows no family."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from nereid.serving.gateway.literals import python_written
from nereid.serving.gateway.tags import Tags

_ALPHANUMERIC = string.ascii_letters + string.digits


class Shape(Enum):
    """How a call is written."""

    OBJECT = "an object with name and arguments"
    LIST = "a list of such objects"
    NAMED = "a name, a mark, and the arguments as JSON"
    TAGS = "a tag for the function and one for each parameter"
    SECTION = "marks around each call, within marks around all of them"
    CHANNELS = "a message to the function, in a channel"
    PYTHON = "a call of Python's"
    BRACES = "a name, and arguments in braces whose names have no quotes"


def long_id(name: str, place: int) -> str:
    return f"call_{secrets.token_hex(12)}"


def short_id(name: str, place: int) -> str:
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


def numbered_id(name: str, place: int) -> str:
    return f"functions.{name}:{place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """What a template takes as a call's id: `allowed`, and for any other one what `instead` makes of it, the function and the
    call's place in the conversation.
    """

    allowed: re.Pattern[str]
    instead: Callable[[str, str, int], str]


NINE = Ids(allowed=re.compile("[a-zA-Z0-9]{9}"), instead=lambda old, name, place: hashlib.sha256(old.encode()).hexdigest()[:9])
"""Mistral's templates refuse any other."""
NUMBERED = Ids(allowed=re.compile(r"functions\.[\w.-]+:\d+"), instead=lambda old, name, place: numbered_id(name, place))
"""Kimi's show the id for the function's name: the model knows no other calls than such."""


def _python(given: Mapping[str, Any] | str) -> str:
    if isinstance(given, str):
        return given
    return ", ".join(f"{key}={python_written(value)}" for key, value in given.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One family's form.

    `begin` stands before each call, or before a list of them, and `end` behind it; `others` are what models write for `begin`,
    `other_ends` for `end`. `bare`: letters with which a line may also begin a call at once, without `begin`; only functions that
    there are count then. `function` and `arguments` are an object's members that have them, `middle` is what stands between
    a name and its arguments, `between` what stands between calls. `opening` is a mark of each call's own behind `begin`, which a
    model may leave out, and `closing` is behind each call; `fenced`: the name comes after `middle`, and then the arguments in a
    fence. `listed` stands around the calls of a list, `pad` around a call within its marks, or around all in their section.
    `keyed`: an object's one member is named by the function. `numbered`: a name stands between `functions.` and a number, all
    three an id. `tags`: those of a function and its parameters; `section`: all calls stand between one `begin` and one `end`.
    `quotes`: marks around texts, where they are not JSON's. `ids`: those of earlier calls, where a template does not take all.
    `silent`: marks around an answer's text, which are none; `before`: such as stand before calls where there is no text.
    """

    name: str
    shape: Shape
    begin: str
    end: str = ""
    others: tuple[str, ...] = ()
    other_ends: tuple[str, ...] = ()
    bare: str = ""
    function: str = "name"
    arguments: str = "arguments"
    middle: str = ""
    between: str = ""
    opening: str = ""
    closing: str = ""
    fenced: bool = False
    listed: tuple[str, str] = ("[", "]")
    pad: str = ""
    keyed: bool = False
    numbered: bool = False
    tags: Tags | None = None
    section: bool = False
    quotes: str = ""
    new_id: Callable[[str, int], str] = long_id
    ids: Ids | None = None
    silent: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def written(self, calls: Sequence[tuple[str, Mapping[str, Any] | str]]) -> str | None:
        """Calls as a model writes them, names and arguments, where they are objects or numbered; None in other shapes."""
        texts = [arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False) for _, arguments in calls]
        members = [{name: given} if self.keyed else {self.function: name, self.arguments: given} for name, given in calls]
        objects = [json.dumps(item, ensure_ascii=False) for item in members]
        match self.shape:
            case Shape.OBJECT if self.end:
                return self.between.join(f"{self.begin}{self.pad}{item}{self.pad}{self.end}" for item in objects)
            case Shape.OBJECT:
                return self.between.join(item if self.bare else f"{self.begin}{self.pad}{item}" for item in objects)
            case Shape.LIST:
                return f"{self.begin}{self.listed[0]}{self.between.join(objects)}{self.listed[1]}{self.end}"
            case Shape.SECTION if self.numbered:
                names = [numbered_id(name, place) for place, (name, _) in enumerate(calls)]
                parts = [f"{self.opening}{n}{self.middle}{text}{self.closing}" for n, text in zip(names, texts, strict=True)]
                return f"{self.begin}{''.join(parts)}{self.end}"
            case Shape.PYTHON:
                lines = self.between.join(f"{name}({_python(given)})" for name, given in calls)
                whole = f"{self.listed[0]}{lines}{self.listed[1]}"
                return whole if self.bare else f"{self.begin}{whole}{self.end}"
            case _:
                return None

    @property
    def begins(self) -> tuple[str, ...]:
        """Texts by which a call is found."""
        return tuple(mark for mark in (self.begin, *self.others, self.opening) if mark)

    @property
    def ends(self) -> tuple[str, ...]:
        """Texts that may stand behind a call, or behind all."""
        return tuple(mark for mark in (self.end, *self.other_ends) if mark)

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that a tokenizer may have as tokens, without which no call is found."""
        tags = (self.tags.parameter, self.tags.ended, self.tags.closing) if self.tags is not None else ()
        marks = (*self.begins, *self.ends, self.middle, self.closing, self.quotes, *tags, *self.silent)
        return tuple(dict.fromkeys(mark for mark in marks if mark))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReading:
    """How calls are found: the form, the functions' parameters by name, and whether more than the first call is told.

    `custom`: the names of those that are custom tools.
    """

    form: ToolFormat
    schemas: Mapping[str, Mapping[str, Any]]
    several: bool = True
    custom: frozenset[str] = frozenset()
