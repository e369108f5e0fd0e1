"""What binds a value that is written as tags in tags, as grammars of llguidance; knows no call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nereid.serving.gateway.grammar_parts import AS_TEMPLATES_WRITE, Length, Schema, as_json, letters, marked
from nereid.serving.gateway.tag_values import is_written_plainly
from nereid.serving.gateway.tags import Tags

_SAYS_NOTHING = {"title", "description", "default", "examples"}
_OF_OBJECT = {"type", "properties", "required", "additionalProperties"}
_OF_LIST = {"type", "items", "minItems", "maxItems"}
_DEEPEST = 8
"""Tags in tags that are bound as such; what is deeper is JSON."""


def nested_part(tags: Tags, tokens: Mapping[str, int], key: str, schema: Any, defs: Schema, deep: int = 0) -> str:
    """A tag, its value and its end. Objects and lists of which a schema says no more than what is in them are tags; any other
    value is JSON, and so are choices and references, which its reader takes, too.
    """
    opening = apart(tags, tokens, f"{tags.parameter}{key}{tags.keyed}")
    closing = apart(tags, tokens, tags.ends(key))
    if is_written_plainly(schema):
        if values := schema.get("enum"):
            return f"{opening} ({' | '.join(letters(item) for item in values)}) {closing}"
        return f"{opening} value {letters(tags.ends(key).removeprefix(tags.nested))}"
    inner = _inner(tags, tokens, schema, defs, deep)
    if inner is None:
        inner = as_json(
            {"allOf": [schema], **defs} if defs else schema if isinstance(schema, Mapping) else {}, AS_TEMPLATES_WRITE
        )
    return f"{opening} {inner} {closing}"


def apart(tags: Tags, tokens: Mapping[str, int], text: str) -> str:
    """A tag, the mark before it as a part of its own: with it a text has ended, whatever tag it is."""
    return f"{marked(tags.nested, tokens)} {marked(text.removeprefix(tags.nested), tokens)}"


def _inner(tags: Tags, tokens: Mapping[str, int], schema: Any, defs: Schema, deep: int) -> str | None:
    """None where it is not to be written as tags."""
    if not isinstance(schema, Mapping) or deep > _DEEPEST:
        return None
    said = schema.keys() - _SAYS_NOTHING
    properties, items = schema.get("properties"), schema.get("items")
    if schema.get("type") == "object" and said <= _OF_OBJECT and isinstance(properties, Mapping) and properties:
        required = schema.get("required", ())
        names_fit = all(key and not any(letter in key for letter in "<>/\n") for key in properties)
        if not names_fit or any(key not in properties for key in required) or set(properties) == {"item"}:
            return None
        length = Length()
        parts = [(key, length.taken(nested_part(tags, tokens, key, inner, defs, deep + 1))) for key, inner in properties.items()]
        return " ".join(part if key in required else f"({part})?" for key, part in parts)
    if schema.get("type") == "array" and said <= _OF_LIST and isinstance(items, Mapping):
        least, most = schema.get("minItems", 0), schema.get("maxItems", "")
        return f"({nested_part(tags, tokens, 'item', items, defs, deep + 1)}){{{least},{most}}}"
    return None
