"""Calls of tools read as they are written, where a function and its parameters stand in tags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.call_objects import NAME, Name, Piece, State
from nereid.serving.gateway.call_scanners import JsonCalls
from nereid.serving.gateway.nested_values import balanced_end, nested_value
from nereid.serving.gateway.said import held_back
from nereid.serving.gateway.tag_values import is_json, is_of, is_written_plainly, json_of, loaded
from nereid.serving.gateway.tags import LONGEST_TAG, Tags

_WRAPPERS = ("arguments", "input", "parameters", "json", "properties")
"""What models call all of the parameters, where they write them as one."""


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
    _lead: str = ""
    """What stands before calls that are JSON."""

    def feed(self, text: str) -> list[Piece]:
        if self._json is not None:
            return self._other(self._json, text)
        self._text += text
        if not self._name:
            self.raw += text
            return self._begin()
        if self._value is not None and not self._value.plain and ">" not in text:
            return []  # all marks end so
        return self._parts()

    def finish(self) -> list[Piece]:
        """A value whose end has come has ended, whatever would have followed."""
        if self._value is None or self.state is not State.OPEN:
            return []
        found = [(at, mark) for mark in self._ended if (at := self._text.find(mark)) >= 0]
        return [self._within(self._value, *min(found))] if found else []

    @property
    def _all(self) -> tuple[Tags, ...]:
        return (self.tags, *self.tags.others)

    @property
    def _ended(self) -> list[str]:
        """What may stand behind the value that is being read."""
        value = self._value
        section = self.tags.sections[1] if value is not None and value.in_section else ""
        return [] if value is None else [section + tags.ends(value.tag) for tags in self._all]

    @property
    def _closing(self) -> list[str]:
        return [tags.closing for tags in self._all if tags.closing]

    def _begin(self) -> list[Piece]:
        lead = self._text.lstrip()
        for mark in self.tags.before:
            lead = lead.removeprefix(mark).lstrip()
            if mark.startswith(lead):
                return []
        if (behind := lead.removeprefix(self.tags.function).lstrip())[:1] in ("{", "["):
            self.raw, self._json = self.raw.removesuffix(behind), JsonCalls()
            self._lead = self.raw
            return self._other(self._json, behind)
        found = next((match for tags in self._all if (match := tags.head.match(lead))), None)
        if found and NAME.fullmatch(found[1].strip()):
            self._name, self._text = found[1].strip(), lead[found.end() :]
            return [Name(self._name), *self._parts()]
        if found or not any(tags.may_begin(lead) for tags in self._all):
            self.state = State.FAILED
        return []

    def _other(self, calls: JsonCalls, text: str) -> list[Piece]:
        made = calls.feed(text)
        self.state, self.rest, self.pending = calls.state, calls.rest, calls.pending
        self.raw = self._lead + calls.raw
        return made

    def _parts(self) -> list[Piece]:
        made = ""
        before: tuple[str, object] | None = None
        while self.state is State.OPEN and before != (before := (self._text, self._value)):
            made += self._between() if self._value is None else self._within(self._value, *self._end(self._value))
        return [made] if made else []

    def _between(self) -> str:
        """Between parameters; what is no part of a call ends it: it has begun."""
        lead = self._text.lstrip()
        if closing := next((mark for mark in self._closing if lead.startswith(mark)), ""):
            return self._closed(lead.removeprefix(closing))
        if self.end and lead.startswith(self.end):
            return self._closed(lead)
        found = next((match for tags in self._all if (match := tags.key.match(lead))), None)
        if found:
            opening, behind = self.tags.sections[0], lead[found.end() :]
            if opening and opening != behind and opening.startswith(behind):
                return ""  # the value may yet stand in a section
            self._text = behind.removeprefix(opening)
            key, says_text = self.tags.read_name(found["key"]), found.groupdict().get("text")
            schema = self._schema.get("properties", {}).get(key)
            says = None if says_text is None else says_text in ("true", "string")
            if schema is None and key in _WRAPPERS and not self._keys:
                says = bool(says)
            self._value = _Value(key, found["key"], schema, says, in_section=bool(opening) and behind.startswith(opening))
            return self._member_lead(key) + '"' if self._value.plain else ""
        if self.tags.nested and (begun := self._unopened(lead)) is not None:
            return begun
        marks = [tags.parameter for tags in self._all]
        waits = any(mark.startswith(lead) for mark in (*marks, *self._closing)) or lead.startswith(tuple(marks))
        return "" if waits and len(lead) < LONGEST_TAG else self._closed(self._text)

    def _unopened(self, lead: str) -> str | None:
        """A parameter whose tag was left out before its value; None: there is none."""
        mark = self.tags.nested
        value, found, behind = lead.removeprefix(mark).partition(f"{mark}</")
        if not value or value.lstrip().startswith("<") or mark.startswith(lead):
            return None
        key, ended, rest = behind.partition(">")
        if not ended:
            return "" if found or len(lead) < LONGEST_TAG else None
        if key not in self._schema.get("properties", {}) or key in self._keys:
            return None
        self._text = rest
        return self._members(_Value(key, key, self._schema["properties"][key], None), value)

    def _closed(self, rest: str) -> str:
        self.state, self.rest = State.DONE, rest
        return "}" if self._keys else "{}"

    @property
    def _schema(self) -> Mapping[str, Any]:
        return self.schemas.get(self._name, {})

    def _member_lead(self, key: str) -> str:
        return f"{', ' if self._keys else '{'}{json.dumps(key, ensure_ascii=False)}: "

    def _within(self, value: _Value, at: int, mark: str) -> str:
        if value.plain:
            made = self._text_of(value, at)
        elif at >= 0:
            text, self._text = self._text[:at], self._text[at:]
            made = self._members(value, text.removeprefix("\n").removesuffix("\n") if self.tags.padded else text)
        else:
            return ""
        if at < 0:
            return made
        self._text, self._value = self._text.removeprefix(mark), None
        if value.plain:
            self._keys.append(value.key)
        return made

    def _text_of(self, value: _Value, at: int) -> str:
        """What may be told of a plain text, which ends at `at`."""
        padded = self.tags.padded
        if padded and not value.begun and at != 0:
            if not self._text or any(tag.startswith(self._text) for tag in self._next()):
                return ""  # the line break may be the next parameter's
            value.begun = True
            if self._text.startswith("\n"):
                self._text, at = self._text[1:], at - 1
        sure = at if at >= 0 else self._sure()
        piece, self._text = self._text[:sure], self._text[sure:]
        piece = piece.removesuffix("\n") if at >= 0 and padded else piece
        return json.dumps(piece, ensure_ascii=False)[1:-1] + ('"' if at >= 0 else "")

    def _members(self, value: _Value, text: str) -> str:
        """A parameter; all, where a model has written an object of them for one; none, where it has left one empty."""
        known = self._schema.get("properties", {})
        if value.key in _WRAPPERS and value.schema is None and not self._keys:
            inner = loaded(json_of(text, {}, {}))
            if isinstance(inner, dict) and inner and inner.keys() <= known.keys():
                return "".join(self._member(key, json.dumps(item, ensure_ascii=False)) for key, item in inner.items())
        schema = {} if value.schema is None else value.schema
        if self.tags.nested:
            written = nested_value(text, self.tags.nested, value.schema, self._schema)
        else:
            written = json_of(text, schema, self._schema, text_first=value.says_text is True)
        if not text.strip() and value.key not in self._schema.get("required", ()) and not is_of(written, schema, self._schema):
            return ""
        return self._member(value.key, written)

    def _member(self, key: str, written: str) -> str:
        lead = self._member_lead(key)
        self._keys.append(key)
        return lead + written

    def _end(self, value: _Value) -> tuple[int, str]:
        """Where a value ends, and with which mark: with its own, or, where that was left out, before the next parameter that
        there is, or before the call's end; -1: that cannot be said yet.
        """
        found = [(at, mark) for mark in self._ended if (at := self._own_end(value, mark)) >= 0]
        found += [(at, "") for tag in self._next() if (at := self._text.find(tag)) >= 0]
        if match := self._call_end.search(self._text):
            found.append((match.start(), ""))
        at, mark = min(found, default=(-1, ""))
        return (-1, "") if mark and self._follows(self._text[at + len(mark) :], value, at, mark) is None else (at, mark)

    def _own_end(self, value: _Value, mark: str) -> int:
        """The first of a mark that may be the value's: another one stands within it, and is not looked at again."""
        nested = self.tags.nested
        if nested and not value.plain and mark.startswith(nested):
            return balanced_end(self._text, nested, value.tag, 0)
        at = self._text.find(mark, value.passed.get(mark, 0))
        while at >= 0 and (
            self._follows(self._text[at + len(mark) :], value, at, mark) is False
            or (nested and not mark.startswith(nested) and self._text.endswith(nested, 0, at))
        ):
            if not value.plain:  # of a plain text it is told, and gone
                value.passed[mark] = at + 1
            at = self._text.find(mark, at + 1)
        return at

    def _follows(self, behind: str, value: _Value, at: int, mark: str = "") -> bool | None:
        """Whether what stands behind a mark at `at` is what may follow a value; None: that cannot be said yet."""
        bare = self.tags.nested and not mark.startswith(self.tags.nested)
        if not value.plain and self._text.lstrip()[:1] in ("{", "[", '"') and is_json(self._text[:at]):
            return True
        lead = behind.lstrip()
        marks = [self.end, *(mark for tags in self._all for mark in (tags.parameter, tags.closing, tags.function))]
        if bare:  # an end without the mark before it is one where nothing else can follow
            known = self._schema.get("properties", {})
            marks = [*self._closing, *(f"{self.tags.parameter}{key}{self.tags.keyed}" for key in known)]
        marks = [mark for mark in marks if mark]
        if lead.startswith(tuple(marks)):
            return True
        return None if any(mark.startswith(lead) for mark in marks) else False

    def _next(self) -> list[str]:
        """Tags of the parameters that have not come yet; none where tags of those names may stand in the value."""
        if self.tags.nested and self._value is not None and not self._value.plain:
            return []
        known = self._schema.get("properties", {})
        lead = "\n" if self.tags.padded else ""
        written = {*self._keys, self._value.key if self._value else ""}
        return [
            f"{lead}{self.tags.parameter}{self.tags.written_name(key)}{self.tags.keyed}" for key in known if key not in written
        ]

    @property
    def _call_end(self) -> re.Pattern[str]:
        closing = self.tags.closing
        return re.compile(rf"{re.escape(closing)}\s*{re.escape(self.end)}" if closing and self.end else r"(?!)")

    def _sure(self) -> int:
        """How much of a plain text is none of the marks that may end it."""
        text, value = self._text, self._value
        assert value is not None
        lead = "\n" if self.tags.padded else ""
        ended = [f"{lead}{mark}" for mark in self._ended]
        sure = len(text) - held_back(text, *ended, *self._ended, *self._closing, *self._next())
        sure = min([sure, *(at for mark in self._ended if (at := self._own_end(value, mark)) >= 0)])
        closing = self.tags.closing
        at = text.rfind(closing) if closing else -1
        if 0 <= at < sure and self.end.startswith(text[at + len(closing) :].lstrip()):
            sure = at
        return sure - 1 if self.tags.padded and text[:sure].endswith("\n") else sure


@dataclass(slots=True, eq=False)
class _Value:
    """A parameter's value that is being read; `tag`: its name as its tag has it, `says_text`: what that says of it,
    `in_section`: whether it stands between marks of its own.
    """

    key: str
    tag: str
    schema: object
    says_text: bool | None
    in_section: bool = False
    begun: bool = False
    passed: dict[str, int] = field(default_factory=dict)
    """By mark: before this place none ends the value."""

    @property
    def plain(self) -> bool:
        return self.says_text is not False and (self.schema is None or is_written_plainly(self.schema))
