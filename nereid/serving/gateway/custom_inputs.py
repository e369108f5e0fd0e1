"""The input of a custom tool, which models write as the one text of a function's arguments; knows no form of calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nereid.serving.gateway.said import Arguments, Call, Input, Said

INPUT = "input"
"""The name of that text, in templates and in what models write."""
_BEGINNING = re.compile(rf'\s*\{{\s*"{INPUT}"\s*:\s*"')
_LETTERS = re.compile(r'(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
_HALF = r"\\u[dD][89abAB][0-9a-fA-F]{2}"
_HALF_OF_A_PAIR = re.compile(rf"(?<!\\)(?:\\\\)*({_HALF})\Z")
_BEGUN = re.compile(r"(?:\\(?:u[0-9a-fA-F]{0,3})?)?")
"""The beginning of an escape, or nothing yet."""
_HELD = re.compile(rf"({_HALF})?{_BEGUN.pattern}")


def parameters_of(pattern: str | None) -> dict[str, Any]:
    """The schema of a function that takes a custom tool's input; `pattern` is a regular expression of the whole of it."""
    text = {"type": "string"} if pattern is None else {"type": "string", "pattern": of_all(pattern)}
    return {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}


def of_all(pattern: str) -> str:
    """A regular expression of a whole text."""
    return f"^(?:{pattern})$"


def arguments_with(text: str) -> str:
    """A custom tool's input as a function's arguments."""
    return json.dumps({INPUT: text}, ensure_ascii=False)


@dataclass(slots=True, eq=False)
class InputText:
    """One input, as far as its arguments are written: the text is told while it comes.

    Arguments of another form than they should have are told at the end: their only text, or as they were written.
    """

    _raw: str = ""
    _begun: bool = False
    _ended: bool = False

    def feed(self, text: str) -> str:
        if self._ended:
            return ""
        self._raw += text
        if not self._begun:
            if (found := _BEGINNING.match(self._raw)) is None:
                return ""
            self._begun, self._raw = True, self._raw[found.end() :]
        return "".join(self._letters())

    def finish(self) -> str:
        if self._ended:
            return ""
        if not self._begun:
            return _only_text(self._raw)
        held = _HELD.fullmatch(self._raw)
        return "\ufffd" if held is not None and held[1] else ""

    def _letters(self) -> Iterator[str]:
        """What is sure by now."""
        while True:
            found = _LETTERS.match(self._raw)
            assert found is not None
            sure = found.end()
            if _BEGUN.fullmatch(self._raw, sure) and (half := _HALF_OF_A_PAIR.search(self._raw[:sure])) is not None:
                sure = half.start(1)
            yield _decoded(self._raw[:sure])
            self._raw = self._raw[sure:]
            if self._raw.startswith('"'):
                self._ended = True
                return
            if _HELD.fullmatch(self._raw):
                return
            yield self._raw[0]  # no escape of JSON: what the model has written
            self._raw = self._raw[1:]


def _decoded(text: str) -> str:
    """Of a text's inside in JSON; half of a surrogate pair can be sent nowhere."""
    made: str = json.loads(f'"{text}"', strict=False)
    return made.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _only_text(raw: str) -> str:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    values = list(found.values()) if isinstance(found, Mapping) else []
    return values[0] if len(values) == 1 and isinstance(values[0], str) else raw


@dataclass(slots=True, eq=False)
class CustomInputs:
    """Calls of custom tools among what an answer says: their arguments become inputs. `names` are the custom tools'."""

    names: frozenset[str] = frozenset()
    _texts: dict[int, InputText] = field(default_factory=dict)

    def told(self, said: Sequence[Said]) -> list[Said]:
        if not self.names:
            return list(said)
        made: list[Said] = []
        for item in said:
            if not (isinstance(item, Arguments) and item.index in self._texts):
                made += self.finish()  # a call has ended where anything else comes
            if isinstance(item, Call) and item.name in self.names:
                self._texts[item.index] = InputText()
                made.append(replace(item, custom=True))
            elif isinstance(item, Arguments) and (text := self._texts.get(item.index)) is not None:
                made += _piece(item.index, text.feed(item.text))
            else:
                made.append(item)
        return made

    def finish(self) -> list[Said]:
        texts, self._texts = self._texts, {}
        return [piece for index, text in texts.items() for piece in _piece(index, text.finish())]


def _piece(index: int, text: str) -> list[Said]:
    return [Input(index, text)] if text else []
