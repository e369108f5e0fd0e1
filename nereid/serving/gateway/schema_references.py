"""References within a JSON schema, where its parts are bound apart from each other; knows no tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nereid.llm.json_schemas import within

_DEFS = "$defs"
_KEPT = ("#/$defs/", "#/definitions/")
"""What goes along with every part."""
_APART = frozenset({_DEFS, "definitions", "$id", "$schema"})
_COPY = "whole"


def with_copy(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same schema; references to itself and to its properties, as zod writes them, lead to a copy of it below `$defs`."""
    name = _COPY
    while name in schema.get(_DEFS, {}):
        name += "_"
    changed = False

    def change(inner: Any) -> Any:
        nonlocal changed
        if not isinstance(inner, Mapping):
            return inner
        made = within(inner, change)
        reference = made.get("$ref")
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")) and not reference.startswith(_KEPT):
            made["$ref"] = f"#/{_DEFS}/{name}{reference[1:]}"
            changed = True
        return made

    made: dict[str, Any] = change(schema)
    if not changed:
        return schema
    copy = {key: value for key, value in made.items() if key not in _APART}
    return {**made, _DEFS: {**made.get(_DEFS, {}), name: copy}}
