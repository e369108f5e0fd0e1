"""What binds a call whose parameters stand apart, in tags or as arguments, as grammars of llguidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nereid.llm.json_schemas import ANNOTATIONS, readable
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
from nereid.serving.gateway.nested_grammars import apart, nested_part
from nereid.serving.gateway.schema_references import with_copy
from nereid.serving.gateway.tag_values import is_written_plainly
from nereid.serving.gateway.tags import Tags

_BOUND = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
"""What a schema may say that is to be obeyed where parameters stand apart."""
_SAYS_NOTHING = ANNOTATIONS | {"$schema", "$id"}


def parameters(name: str, schema: Schema) -> list[tuple[str, Schema, bool]]:
    """Of a function: its parameters in their schema's order, each with a schema of its own, and whether it is required; raises
    NotBindableError where the schema says more.
    """
    schema = _apart(schema)
    if unknown := sorted(key for key in schema.keys() - _BOUND - _SAYS_NOTHING if not key.startswith("x-")):
        raise NotBindableError(name, f"{unknown[0]} cannot be bound where a template writes parameters apart")
    properties: Mapping[str, Any] = schema.get("properties", {})
    required: Sequence[str] = schema.get("required", ())
    if missing := [key for key in required if key not in properties]:
        raise NotBindableError(name, f"required: {missing[0]!r} is none of its properties")
    defs = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    made = []
    for key, inner in properties.items():
        whole = inner if isinstance(inner, Mapping) and (is_written_plainly(inner) or not defs) else {"allOf": [inner], **defs}
        made.append((key, whole if isinstance(whole, Mapping) else {}, key in required))
    return made


def _apart(schema: Schema) -> Schema:
    """As it is bound, so that its properties can be bound each by itself."""
    read = readable(schema)
    return with_copy(read if isinstance(read, dict) else schema)


def tagged(tags: Tags, tokens: Mapping[str, int], name: str, schema: Schema, lead: str = "") -> str:
    """A call behind its opening and `lead`; parameters that are not required may be left out."""
    pad = "\n" if tags.padded else ""
    schema = _apart(schema)
    parts, length = [_numbered(f"{lead}{name}{tags.named}{tags.line}", tokens)], Length()
    defs = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for key, inner, required in parameters(name, schema):
        if not key or any(letter in key for letter in ("<>\n" if tags.entities else "<>/\n" if tags.nested else '<>"\n')):
            raise NotBindableError(name, f"properties: {key!r} cannot be the name of a tag")
        if tags.nested:
            part = length.taken(nested_part(tags, tokens, key, schema["properties"][key], defs))
            parts.append(part if required else f"({part})?")
            continue
        plain = is_written_plainly(inner)
        opening = _typed(
            f"{tags.parameter}{tags.written_name(key)}{tags.keyed}{tags.opened[0 if plain else 1]}{pad}", inner, tokens
        )
        closing = marked(f"{pad}{tags.ended}{tags.line}", tokens)
        if not plain:
            value = f"{as_json(inner, AS_TEMPLATES_WRITE)} {closing}"
        elif values := inner.get("enum"):
            value = f"({' | '.join(letters(item) for item in values)}) {closing}"
        else:
            value = "value"
        part = length.taken(f"{opening} {value}")
        parts.append(part if required else f"({part})?")
    closing = apart(tags, tokens, tags.closing) if tags.nested else marked(tags.closing, tokens)
    return " ".join([*parts, *([closing] if tags.closing else [])])


def _numbered(text: str, tokens: Mapping[str, int]) -> str:
    """Letters with the number of a call among them, whatever it is."""
    first, numbered, last = text.partition("%d")
    return f"{marked(first, tokens)} /[0-9]{{1,3}}/ {marked(last, tokens)}" if numbered else marked(text, tokens)


def _typed(text: str, schema: Schema, tokens: Mapping[str, int]) -> str:
    """Letters with the type of a value among them: its schema's, or, where that says none, or a text that it bounds, any other
    one than that of plain texts.
    """
    first, typed, last = text.partition("%s")
    if not typed:
        return marked(text, tokens)
    inner = schema.get("allOf", [schema])[0] if schema.keys() <= {"allOf", "$defs", "definitions"} else schema
    kind = inner.get("type") if isinstance(inner, Mapping) else None
    kinds = [_JSON_TYPES[kind]] if isinstance(kind, str) and kind in _JSON_TYPES else sorted(set(_JSON_TYPES.values()))
    return f"{marked(first, tokens)} ({' | '.join(letters(item) for item in kinds)}) {marked(last, tokens)}"


_JSON_TYPES = {kind: kind for kind in ("number", "boolean", "null", "object", "array")} | {"integer": "number"}


def value_rules(tags: Tags, tokens: Mapping[str, int]) -> dict[str, str]:
    """The rule `value`: a text and its end, which is the first; a tag that would begin another parameter does not stand in it.

    Lexemes take as much as they can: one must have all of the end that is no token.
    """
    ending = tags.nested or f"{chr(10) if tags.padded else ''}{tags.ended}{tags.line}"
    marks = (tags.nested,) if tags.nested else (tags.ended, tags.parameter, tags.closing, tags.sections[0])
    none = "|".join(escaped(mark) for mark in marks if mark)
    rules = {
        "value": "VALUE_IN_LETTERS",
        "VALUE_IN_LETTERS": f"VALUE {letters(ending)}",
        "VALUE": f"/(?s:.*)/ & ~/(?s:.*)({none})(?s:.*)/",
    }
    parts = pieces(ending, tokens)
    if len(parts) == 1 and ending not in tokens:
        return rules
    lead = "" if parts[0] in tokens else parts.pop(0)
    rules["value"] = f"VALUE_IN_LETTERS | VALUE_IN_TOKENS{'' if lead else '?'} {marked(''.join(parts), tokens)}"
    rules["VALUE_IN_TOKENS"] = f"VALUE {letters(lead)}" if lead else f"/(?s:.+)/ & ~/(?s:.*)({none})(?s:.*)/"
    return rules


def argument_rules(rule: str, name: str, schema: Schema, quotes: str, tokens: Mapping[str, int]) -> dict[str, str]:
    """`rule`, a call as Python has it, or with `quotes`, as Gemma: arguments by name, whose values are JSON, which Python's and
    Gemma's readers take, too; Gemma's plain texts stand between marks.
    """
    given, length = parameters(name, schema), Length()
    equals, comma, first, last = (":", ",", f"call:{name}{{", "}") if quotes else ("=", ", ", f"{name}(", ")")
    rules = {rule: f"{letters(first)} {rule}_first_0 {letters(last)}"}
    for place, (key, inner, required) in enumerate(given):
        if not key.isidentifier():
            raise NotBindableError(name, f"properties: {key!r} cannot be the name of an argument")
        if not quotes or not is_written_plainly(inner):
            value = as_json(inner, {"whitespace_flexible": False} if quotes else AS_TEMPLATES_WRITE)
        elif values := inner.get("enum"):
            value = f"{marked(quotes, tokens)} ({' | '.join(letters(item) for item in values)}) {marked(quotes, tokens)}"
        else:
            value = f"{marked(quotes, tokens)} quoted"
        written, after = length.taken(f"{letters(f'{key}{equals}')} {value}"), f"{rule}_more_{place + 1}"
        skipped = "" if required else f" | {rule}_first_{place + 1}"
        rules[f"{rule}_first_{place}"] = f"{written} {after}{skipped}"
        more = f"{letters(comma)} {written}"
        rules[f"{rule}_more_{place}"] = f"{more} {after}" if required else f"({more})? {after}"
    rules[f"{rule}_first_{len(given)}"] = rules[f"{rule}_more_{len(given)}"] = '""'
    return rules


def quoted_rules(quotes: str, tokens: Mapping[str, int]) -> dict[str, str]:
    """The rule `quoted`: a text and the mark behind it."""
    rules = {"quoted": "QUOTED_IN_LETTERS", "QUOTED_IN_LETTERS": f"QUOTED {letters(quotes)}"}
    rules["QUOTED"] = f"/(?s:.*)/ & ~/(?s:.*){escaped(quotes)}(?s:.*)/"
    if quotes in tokens:
        rules["quoted"] = f"QUOTED_IN_LETTERS | QUOTED_SOME? <[{tokens[quotes]}]>"
        rules["QUOTED_SOME"] = f"/(?s:.+)/ & ~/(?s:.*){escaped(quotes)}(?s:.*)/"
    return rules
