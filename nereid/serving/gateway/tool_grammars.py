"""What binds an answer of thoughts, text and calls to its form, as a grammar in Lark as llguidance reads it; knows no model.

llguidance compiles the JSON schemas within it (`%json`), takes tokens by number (`<[7]>`), ends a lazy text at its first mark:
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.answer_streams import CallReading
from nereid.serving.gateway.channel_streams import CHANNEL, CONSTRAIN, END, MESSAGE, START
from nereid.serving.gateway.tag_values import is_written_plainly
from nereid.serving.gateway.thoughts import Thinking
from nereid.serving.gateway.tool_formats import Shape, ToolFormat

Schema = Mapping[str, Any]

MOST_CALLS = 64
"""In an answer that is bound to calls: a model that cannot end would write them until its tokens are used up."""
_AS_TEMPLATES_WRITE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python's json does, by which templates show calls."""
_AS_EITHER = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""As templates show calls, or compact, as the models are trained to write them."""
_COMPACT = {"whitespace_flexible": False}
_FENCE_BEGINS, _FENCE_ENDS = "\n```json\n", "\n```"
_ANY = "/(.|\\n)*/"
_TAGGED = {"type", "properties", "required", "additionalProperties", "title", "description", "$defs", "definitions", "$schema"}
"""What a schema may say that is to be obeyed in tags."""


class NotBindableError(ValueError):
    """A schema cannot be written in the template's form: `tool` is its place, the sentence says why."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name = name


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What an answer may be: thoughts first, then calls that obey their schemas, or JSON of a schema, or text.

    `tokens`: the tokenizer's added tokens by text. `called`: calls alone are allowed. `schema`: of what is no call, None: any.
    """

    thinking: Thinking | None = None
    calls: CallReading | None = None
    called: bool = False
    schema: Schema | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)

    def grammar(self) -> str:
        """Raises NotBindableError."""
        rules: dict[str, str] = {}
        parts = [self._channels(rules)] if self._in_channels else [self._thoughts(rules), self._body(rules)]
        rules = {"start": " ".join(part for part in parts if part), **rules}
        return "%llguidance {}\n" + "".join(f"{name}: {rule}\n" for name, rule in rules.items())

    def _thoughts(self, rules: dict[str, str]) -> str:
        if self.thinking is None:
            return ""
        self._until(rules, "thoughts", self.thinking.end)
        if self.thinking.opened:
            return "thoughts /\\n*/"
        rules["thinks"] = f"{self._mark(self.thinking.begin)} thoughts /\\n*/"
        return "thinks?"

    def _body(self, rules: dict[str, str]) -> str:
        if self.schema is not None:
            rules["json"] = _json(self.schema, _COMPACT)
        if self.calls is None:
            assert self.schema is not None
            return "json"
        form = self.calls.form
        rules["calls"] = self._several(self.calls, form)
        rules |= self._call_rules(self.calls)
        if self.called:
            return "calls"
        if self.schema is not None:
            return "(json | calls)"
        if form.bare:
            rules["text"] = '/[^{\\s][^\\n]*(\\n\\s*([^{\\s][^\\n]*)?)*/ | ""'  # no line begins as a call does
            return "(text | calls)"
        # Text and calls in turns, and text at the end.
        turns = []
        for place, mark in enumerate((form.begin, *form.others)):
            self._until(rules, f"head_{place}", mark)
            turns.append(f"head_{place} {self._inside(form)}")
        if form.opening:  # without the mark before it, which a model may leave out
            self._until(rules, "lone", form.opening)
            turns.append(f"lone {self._inside(form, opened=True)}")
        rules["turn"] = " | ".join(turns)
        rules["tail"] = "TEXT"
        rules["TEXT"] = _ANY
        del rules["calls"]
        return f"turn{'*' if self.calls.several else '?'} tail"

    def _several(self, calls: CallReading, form: ToolFormat) -> str:
        """Nothing but calls."""
        whole = f"{self._mark(form.begin)} {self._inside(form)}"
        if form.bare:
            whole = "call"
        if form.shape in (Shape.LIST, Shape.SECTION) or not calls.several:
            return whole
        between = f"{_text(form.between)} " if form.between else ""
        return f"{whole} ({between}{whole}){{0,{MOST_CALLS - 1}}}"

    def _inside(self, form: ToolFormat, *, opened: bool = False) -> str:
        """What follows the mark; `opened`: the first call's mark is there already."""
        assert self.calls is not None
        match form.shape:
            case Shape.SECTION:
                begin, end = self._mark(form.opening), self._mark(form.closing)
                more = f"{_text(form.between)} " if form.between else ""
                more = f" ({more}{begin} call {end}){{0,{MOST_CALLS - 1}}}" if self.calls.several else ""
                return f"{'' if opened else begin} call {end}{more} {self._mark(form.end)}"
            case Shape.LIST:
                more = f" ({_text(form.between)} call){{0,{MOST_CALLS - 1}}}" if self.calls.several else ""
                return f'"[" call{more} "]"'
            case Shape.NAMED:
                return "call"
            case Shape.TAGS:
                begin = "" if opened else f'"\\n" {self._mark(form.opening)}'
                return f'{begin} call "\\n" {self._mark(form.end)}'
            case _ if form.end:
                return f'"\\n" call "\\n" {self._mark(form.end)}'
            case _:
                return "call"

    def _call_rules(self, calls: CallReading) -> dict[str, str]:
        made = {"call": " | ".join(f"call_{place}" for place in range(len(calls.schemas)))}
        for place, (name, schema) in enumerate(calls.schemas.items()):
            made[f"call_{place}"] = self._call(calls.form, name, schema)
        return made

    def _call(self, form: ToolFormat, name: str, schema: Schema) -> str:
        match form.shape:
            case Shape.TAGS:
                return _tags(name, schema)
            case Shape.NAMED:
                return f"{_text(name)} {self._mark(form.middle)} {_json(schema, _AS_TEMPLATES_WRITE)}"
            case Shape.SECTION if form.fenced:
                lead = f'"function" {self._mark(form.middle)} {_text(f"{name}{_FENCE_BEGINS}")}'
                return f"{lead} {_json(schema, _AS_EITHER)} {_text(_FENCE_ENDS)}"
            case Shape.SECTION:
                return f"{_text(name)} {self._mark(form.middle)} {_json(schema, _AS_EITHER)}"
            case Shape.CHANNELS:
                channel, to = self._mark(CHANNEL), f" to=functions.{name}"
                lead = f'{channel} {_text(f"commentary{to}")} | {_text(to)} {channel} "commentary"'
                return f"({lead}) {self._message} {_json(schema, _AS_EITHER)}"
            case _:
                lead = f'{{"name": {json.dumps(name)}, "{form.arguments}": '
                return f'{_text(lead)} {_json(schema, _AS_TEMPLATES_WRITE)} "}}"'

    # --- in channels ---

    @property
    def _in_channels(self) -> bool:
        return (self.thinking is not None and self.thinking.channels) or (
            self.calls is not None and self.calls.form.shape is Shape.CHANNELS
        )

    @property
    def _message(self) -> str:
        """The end of a header before JSON: models name the type of what follows with its mark, or without, or not at all."""
        return f'((" "? {self._mark(CONSTRAIN)} | " ") "json")? {self._mark(MESSAGE)}'

    def _channels(self, rules: dict[str, str]) -> str:
        """Messages of thoughts, and text where that is free, and then the last one: calls, JSON, or text."""
        free = self.schema is None and not self.called
        channel, message, again = self._mark(CHANNEL), self._mark(MESSAGE), f'{self._mark(START)} "assistant"'
        self._until(rules, "said", END)
        last = []
        if self.calls is not None:
            rules["calls"] = f"call ({self._mark(self.calls.form.end)} {again} call){{0,{MOST_CALLS - 1}}}"
            if not self.calls.several:
                rules["calls"] = "call"
            rules |= self._call_rules(self.calls)
            last.append("calls")
        if self.schema is not None:
            rules["json"] = _json(self.schema, _COMPACT)
        if not self.called:
            rules["TEXT"] = _ANY
            last.append(f'{channel} "final" {message} TEXT' if free else f'{channel} "final" {self._message} json')
        names = (*(("analysis",) if self.thinking is not None else ()), *(("commentary", "final") if free else ()))
        if names:
            rules["note"] = f"{channel} ({' | '.join(_text(name) for name in names)}) {message} said {again}"
        rules["last"] = " | ".join(last)
        whole = "note* last" if names else "last"
        if self.thinking is None or not self.thinking.opened:
            return whole
        if self.schema is not None and not self.called:
            return "json"
        return f"(TEXT | said {again} {whole})" if free else f"said {again} {whole}"

    def _mark(self, mark: str) -> str:
        """A mark as the token that it is, or letter by letter, which such a token never matches."""
        token = self.tokens.get(mark)
        return _text(mark) if token is None else f"(<[{token}]> | {_text(mark)})"

    def _until(self, rules: dict[str, str], name: str, mark: str) -> None:
        """Any text up to a mark, and the mark."""
        token = self.tokens.get(mark)
        if token is None:
            rules[f"{name}[lazy]"] = f"{_ANY} {_text(mark)}"
        else:
            rules[name] = f"{_ANY} <[{token}]>"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Schema, spacing: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': spacing}, ensure_ascii=False)}"


def _tags(name: str, schema: Schema) -> str:
    """A call as Qwen 3 Coder writes it, behind its opening: parameters in their schema's order, of which those that are not
    required may be left out.
    """
    if unknown := sorted(schema.keys() - _TAGGED):
        raise NotBindableError(name, f"{unknown[0]} cannot be bound where a template writes calls as tags")
    properties: Mapping[str, Any] = schema.get("properties", {})
    required: Sequence[str] = schema.get("required", ())
    if missing := [key for key in required if key not in properties]:
        raise NotBindableError(name, f"required: {missing[0]!r} is none of its properties")
    defs = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    parts = [_text(f"{name}>\n")]
    for key, inner in properties.items():
        if ">" in key or "\n" in key:
            raise NotBindableError(name, f"properties: {key!r} cannot be the name of a tag")
        opening, closing = _text(f"<parameter={key}>\n"), _text("</parameter>\n")
        if isinstance(inner, Mapping) and is_written_plainly(inner):
            values = inner.get("enum")
            value = f"({' | '.join(_text(item) for item in values)})" if values else "/[^<]*/"
            value += ' "\\n"'
        else:
            whole = {"allOf": [inner], **defs} if defs else inner
            value = f'{_json(whole if isinstance(whole, Mapping) else {}, _AS_TEMPLATES_WRITE)} "\\n"'
        part = f"{opening} {value} {closing}"
        parts.append(part if key in required else f"({part})?")
    return " ".join([*parts, _text("</function>")])
