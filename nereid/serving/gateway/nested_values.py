"""Values of parameters that are written as tags in tags, as JSON; knows no call."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nereid.serving.gateway.tag_values import is_written_plainly, json_of, resolved

_ITEM = "item"
_DEEPEST = 32
"""Tags in tags that are read as such."""


def nested_value(text: str, mark: str, schema: object, root: Mapping[str, Any], deep: int = 0) -> str:
    """A value whose objects and lists are tags with `mark` before each: `<key>value</key>`, and `<item>` for each of a list; by
    its schema, from which also an empty one is told. `root` has the definitions.
    """
    if is_written_plainly(schema):
        return json.dumps(text, ensure_ascii=False)
    kinds = set(_kinds(schema, root))
    members = list(_members(text, mark)) if deep < _DEEPEST and text.lstrip().startswith(mark) else []
    if not members:
        if not text.strip() and len(kinds - {"null"}) == 1 and (empty := _EMPTY.get(min(kinds - {"null"}))):
            return empty
        return json_of(text, {} if schema is None else schema, root)
    made: dict[str, list[str]] = {}
    for key, inner in members:
        made.setdefault(key, []).append(nested_value(inner, mark, _child(schema, key, root), root, deep + 1))
    if made.keys() == {_ITEM} and ("array" in kinds or "object" not in kinds):
        return f"[{', '.join(made[_ITEM])}]"
    parts = [f"{json.dumps(key, ensure_ascii=False)}: {_one_or_more(values)}" for key, values in made.items()]
    return f"{{{', '.join(parts)}}}"


_EMPTY = {"object": "{}", "array": "[]"}


def _one_or_more(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"


def _members(text: str, mark: str) -> Iterator[tuple[str, str]]:
    """The outermost tags and what is in them; none where something else stands between them."""
    found, at = [], 0
    opening = re.compile(rf"\s*{re.escape(mark)}\s*<([^<>/\n][^<>\n]*)>")
    while match := opening.match(text, at):
        end = balanced_end(text, mark, match[1], match.end())
        if end < 0:
            return iter(())
        found.append((match[1].strip(), text[match.end() : end]))
        at = end + len(mark) + len(match[1]) + 3
    return iter(found) if not text[at:].strip() else iter(())


def balanced_end(text: str, mark: str, key: str, begin: int) -> int:
    """Where the value of a tag ends that begins at `begin`, tags of its own name within it passed over; -1: nowhere."""
    opening, closing = f"{mark}<{key}>", f"{mark}</{key}>"
    at, deep = begin, 1
    while (end := text.find(closing, at)) >= 0:
        deep += text.count(opening, at, end) - 1
        if deep == 0:
            return end
        at = end + len(closing)
    return -1


def _branches(schema: object, root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and what it refers to or chooses from; each reference is followed once."""
    return _followed(schema, root, set())


def _followed(schema: object, root: Mapping[str, Any], references: set[str], deep: int = 0) -> Iterator[Mapping[str, Any]]:
    if not isinstance(schema, Mapping) or deep > _DEEPEST:
        return
    yield schema
    if "$ref" in schema and (reference := str(schema["$ref"])) not in references:
        references.add(reference)
        yield from _followed(resolved(reference, root), root, references, deep + 1)
    for name in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(name) or ():
            yield from _followed(inner, root, references, deep + 1)


def _kinds(schema: object, root: Mapping[str, Any]) -> Iterator[str]:
    for branch in _branches(schema, root):
        kind = branch.get("type")
        yield from (kind,) if isinstance(kind, str) else kind if isinstance(kind, list) else ()


def _child(schema: object, key: str, root: Mapping[str, Any]) -> object:
    """The schema of a member, or of a list's items; None: nothing is said of it."""
    for branch in _branches(schema, root):
        properties, more = branch.get("properties"), branch.get("additionalProperties")
        if isinstance(properties, Mapping) and key in properties:
            return properties[key]
        if key == _ITEM and isinstance(branch.get("items"), Mapping):
            return branch["items"]
        if isinstance(more, Mapping):
            return more
    return None
