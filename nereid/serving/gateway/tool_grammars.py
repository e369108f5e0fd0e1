"""What binds an answer of thoughts, text and calls to its form, as a grammar in Lark as llguidance reads it; knows no model.

llguidance compiles the JSON schemas within it (`%json`), takes tokens by number (`<[7]>`), ends a lazy text at its first mark:
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from nereid.llm.json_schemas import unbindable
from nereid.serving.gateway.call_forms import CallReading, Shape, ToolFormat
from nereid.serving.gateway.channel_streams import CHANNEL, CONSTRAIN, END, MESSAGE, START
from nereid.serving.gateway.grammar_parts import (
    AS_TEMPLATES_WRITE,
    Length,
    NotBindableError,
    Schema,
    as_json,
    escaped,
    letters,
    marked,
    pieces,
)
from nereid.serving.gateway.tag_grammars import argument_rules, quoted_rules, tagged, value_rules
from nereid.serving.gateway.thoughts import Thinking
from nereid.serving.gateway.tool_formats import COHERE

MOST_CALLS = 64
"""In an answer that is bound to calls: a model that cannot end would write them until its tokens are used up."""
_AS_EITHER = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""As templates show calls, or compact, as the models are trained to write them."""
_COMPACT = {"whitespace_flexible": False}
_FENCE_BEGINS, _FENCE_ENDS = "\n```json\n", "\n```"
_ANY = "/(.|\\n)*/"


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
        """Raises NotBindableError, TooLongError."""
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
            rules["json"] = as_json(self.schema, _COMPACT)
        if self.calls is None:
            assert self.schema is not None
            return "json"
        form = self.calls.form
        rules["calls"] = self._several(self.calls, form)
        rules |= self._call_rules(self.calls)
        if self.called:
            silent = [f"({self._mark(mark)})?" for mark in form.before]
            return " ".join([*silent, "calls"])
        if self.schema is not None:
            return "(json | calls)"
        if form.bare:
            first = f"[^{escaped(form.bare)}\\s]"  # no line begins as a call does
            rules["text"] = f'/{first}[^\\n]*(\\n\\s*({first}[^\\n]*)?)*/ | ""'
            return "(text | calls)"
        # Text and calls in turns, and text at the end.
        turns = []
        for place, mark in enumerate((form.begin, *form.others)):
            self._until(rules, f"head_{place}", mark)
            turns.append(f"head_{place} {self._inside(form, opened=mark == form.opening)}")
        if form.opening and form.opening != form.begin:  # without the mark before it, which a model may leave out
            self._until(rules, "lone", form.opening)
            turns.append(f"lone {self._inside(form, opened=True)}")
        rules["turn"] = " | ".join(turns)
        rules["tail"] = "TEXT"
        rules["TEXT"] = _ANY
        del rules["calls"]
        return f"turn{'*' if self.calls.several else '?'} tail"

    def _several(self, calls: CallReading, form: ToolFormat) -> str:
        """Nothing but calls."""
        whole = f"{self._mark(form.begin)} {self._inside(form, opened=form.begin == form.opening)}"
        if form.bare:
            whole = "call" if form.shape is Shape.OBJECT else self._listed(form)
        if form.shape in (Shape.LIST, Shape.SECTION, Shape.PYTHON) or form.section or not calls.several:
            return whole
        return f"{whole}{self._more(form.between, whole)}"

    def _more(self, between: str, call: str) -> str:
        """Calls behind the first."""
        assert self.calls is not None
        lead = f"{self._mark(between)} " if between else ""
        return f" ({lead}{call}){{0,{MOST_CALLS - 1}}}" if self.calls.several else ""

    def _listed(self, form: ToolFormat) -> str:
        first, last = map(letters, form.listed)
        return f"{first} call{self._more(form.between, 'call')} {last}"

    def _inside(self, form: ToolFormat, *, opened: bool = False) -> str:
        """What follows the mark; `opened`: the first call's mark is there already."""
        end = self._mark(form.end) if form.end else ""
        pad = f"{letters(form.pad)} " if form.pad else ""
        match form.shape:
            case Shape.SECTION:
                call = f"{self._mark(form.opening)} call {self._mark(form.closing)}"
                first = f"call {self._mark(form.closing)}" if opened else call
                return f"{first}{self._more(form.between, call)} {end}"
            case Shape.LIST | Shape.PYTHON:
                return f"{self._listed(form)} {end}"
            case Shape.TAGS if form.opening:
                call = f"{self._mark(form.opening)} call {self._mark(form.closing) if form.closing else ''}"
                first = call.removeprefix(self._mark(form.opening)) if opened else f"{pad}{call}"
                more = self._more(form.between, call) if form.section else ""
                return f"{first}{more} {pad}{end}"
            case Shape.OBJECT:
                return f"{pad}call {pad if form.end else ''}{end}"
            case _:
                return f"call {end}"

    def _call_rules(self, calls: CallReading) -> dict[str, str]:
        made = {"call": " | ".join(f"call_{place}" for place in range(len(calls.schemas)))}
        form, length = calls.form, Length()
        for place, (name, schema) in enumerate(calls.schemas.items()):
            made[f"call_{place}"] = length.taken(self._call(form, name, schema))
        if form.tags is not None:
            made |= value_rules(form.tags, self.tokens)
        if form.quotes:
            made |= quoted_rules(form.quotes, self.tokens)
        if form.shape in (Shape.PYTHON, Shape.BRACES):
            for place, (name, schema) in enumerate(calls.schemas.items()):
                rules = argument_rules(f"call_{place}", name, schema, form.quotes, self.tokens)
                length.taken("".join(rules.values()))
                made |= rules
        return made

    def _call(self, form: ToolFormat, name: str, schema: Schema) -> str:
        if fault := unbindable(schema):
            raise NotBindableError(name, f"{fault} cannot be bound")
        match form.shape:
            case Shape.TAGS:
                assert form.tags is not None
                lead = "" if form.opening in ("", form.tags.function) else "".join((*form.tags.before, form.tags.function))
                return tagged(form.tags, self.tokens, name, schema, lead.removeprefix(form.opening))
            case Shape.NAMED:
                return f"{letters(name)} {self._mark(form.middle)} {as_json(schema, AS_TEMPLATES_WRITE)}"
            case Shape.SECTION if form.fenced:
                lead = f'"function" {self._mark(form.middle)} {letters(f"{name}{_FENCE_BEGINS}")}'
                return f"{lead} {as_json(schema, _AS_EITHER)} {letters(_FENCE_ENDS)}"
            case Shape.SECTION:
                lead = f"{letters(f'functions.{name}:')} /[0-9]{{1,3}}/" if form.numbered else letters(name)
                return f"{lead} {self._mark(form.middle)} {as_json(schema, _AS_EITHER)}"
            case Shape.CHANNELS:
                channel, to = self._mark(CHANNEL), f" to=functions.{name}"
                lead = f'{channel} {letters(f"commentary{to}")} | {letters(to)} {channel} "commentary"'
                return f"({lead}) {self._message} {as_json(schema, _AS_EITHER)}"
            case Shape.PYTHON | Shape.BRACES:
                return ""  # argument_rules' is
            case _:
                if form.keyed:
                    return f'"{{" {letters(f"{json.dumps(name)}: ")} {as_json(schema, AS_TEMPLATES_WRITE)} "}}"'
                number = '"\\"tool_call_id\\": \\"" /[0-9]{1,3}/ "\\", " ' if form is COHERE else ""
                lead = f'"{form.function}": {json.dumps(name)}, "{form.arguments}": '
                return f'"{{" {number}{letters(lead)} {as_json(schema, AS_TEMPLATES_WRITE)} "}}"'

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
            rules["json"] = as_json(self.schema, _COMPACT)
        if not self.called:
            rules["TEXT"] = _ANY
            last.append(f'{channel} "final" {message} TEXT' if free else f'{channel} "final" {self._message} json')
        names = (*(("analysis",) if self.thinking is not None else ()), *(("commentary", "final") if free else ()))
        if names:
            rules["note"] = f"{channel} ({' | '.join(letters(name) for name in names)}) {message} said {again}"
        rules["last"] = " | ".join(last)
        whole = "note* last" if names else "last"
        if self.thinking is None or not self.thinking.opened:
            return whole
        if self.schema is not None and not self.called:
            return "json"
        return f"(TEXT | said {again} {whole})" if free else f"said {again} {whole}"

    def _mark(self, mark: str) -> str:
        return marked(mark, self.tokens)

    def _until(self, rules: dict[str, str], name: str, mark: str) -> None:
        """Any text up to a mark, and the mark: the first one that is written in letters, or one with tokens of its own."""
        parts = pieces(mark, self.tokens)
        if parts[0] == mark and mark in self.tokens:
            rules[name] = f"{_ANY} <[{self.tokens[mark]}]>"
            return
        rules[f"{name}[lazy]"] = f"{_ANY} {letters(mark)}"
        if len(parts) == 1:
            return
        rules[name] = f"{name}_letters | {name}_tokens"
        rules[f"{name}_letters[lazy]"] = rules.pop(f"{name}[lazy]")
        lead = "" if parts[0] in self.tokens else parts.pop(0)
        rules[f"{name}_tokens"] = f"{name.upper()}_TEXT {marked(''.join(parts), self.tokens)}"
        rules[f"{name.upper()}_TEXT"] = f"/(.|\\n)*{escaped(lead)}/"
