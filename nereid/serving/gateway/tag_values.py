"""Values as models write them into tags, as JSON; knows no tags."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from nereid.llm.json_schemas import ANNOTATIONS, readable
from nereid.serving.gateway.call_objects import no_json

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "number": (int, float),
    "integer": (int, float),
}
_DEEPEST = 16
"""Schemas in each other, and references, that are looked at."""
_NUMBER = re.compile(r"\s*+([+-]?)(?:0(?=[0-9]))*+([0-9]++(?:\.[0-9]++)?)\s*+", re.ASCII)
"""With zeros before it. Nothing is tried twice: models write thousands of them."""
_PLACE = re.compile("0|[1-9][0-9]{0,8}")
"""In a list, as pointers have it (RFC 6901, 4)."""


def is_written_plainly(schema: object) -> bool:
    """Whether a parameter of this schema stands in its tag as it is, and not as JSON: a text that nothing bounds."""
    if not isinstance(schema, dict) or schema.get("type") != "string":
        return False
    read = readable(schema)
    if not isinstance(read, dict) or read.keys() - ANNOTATIONS - {"type", "enum"}:
        return False
    return all(isinstance(value, str) and value.strip() == value and "<" not in value and value for value in read.get("enum", ()))


def json_of(text: str, schema: object, root: Mapping[str, Any], *, text_first: bool = False) -> str:
    """A parameter's value as JSON: the first reading that is of its schema's types, as JSON, as Python writes it, as a text,
    which comes first where `text_first`, as JSON that was written twice, or as a number with zeros before it. `root` has the
    definitions.
    """
    as_text = json.dumps(text, ensure_ascii=False)
    readings = [reading for read in (_as_json, _as_python) if (reading := read(text)) is not None]
    last = [reading for read in (_as_json_twice, _as_number) if (reading := read(text)) is not None]
    readings = [as_text, *readings, *last] if text_first else [*readings, as_text, *last]
    return next((made for made in readings if is_of(made, schema, root)), readings[0])


def is_of(written: str, schema: object, root: Mapping[str, Any]) -> bool:
    """Whether some JSON is of a schema's types and choices."""
    return _is_of(json.loads(written), schema, root, {})


def loaded(text: str) -> Any:
    """None where it is no JSON."""
    return None if _as_json(text) is None else json.loads(text)


def is_json(text: str) -> bool:
    return _as_json(text) is not None


def _as_json_twice(text: str) -> str | None:
    inner = loaded(text)
    return _as_json(inner) if isinstance(inner, str) else None


def _as_number(text: str) -> str | None:
    found = _NUMBER.fullmatch(text)
    return f"{found[1].strip('+')}{found[2]}" if found else None


def _as_json(text: str) -> str | None:
    try:
        json.loads(text, parse_constant=no_json)
    except (ValueError, RecursionError):
        return None
    return text.strip()


_WORDS = {"true": True, "false": False, "null": None}


class _Words(ast.NodeTransformer):
    """JSON's words within Python's literals."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.copy_location(ast.Constant(_WORDS[node.id]), node) if node.id in _WORDS else node


def _as_python(text: str) -> str | None:
    """Models have seen more of Python than of JSON: True, None, single quotes."""
    try:
        read = ast.literal_eval(_Words().visit(ast.parse(text.strip(), mode="eval")))
        return json.dumps(read, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _is_of(value: Any, schema: Any, root: Mapping[str, Any], followed: dict[str, bool], deep: int = 0) -> bool:
    """Whether a value is of a schema's types and choices. No expression of a caller's is tried: some take for ever.

    `followed` has what references allow it: each is followed once, and where it comes back to itself, that forbids nothing.
    """
    if not isinstance(schema, dict) or deep > _DEEPEST:
        return schema is not False
    if "$ref" in schema:
        reference = str(schema["$ref"])
        if reference not in followed:
            followed[reference] = True
            followed[reference] = _is_of(value, resolved(reference, root), root, followed, deep + 1)
        if not followed[reference]:
            return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    if isinstance(choices := schema.get("enum"), list) and not any(_same(value, choice) for choice in choices):
        return False
    types = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type")
    if isinstance(types, list) and not any(_is_typed(value, kind) for kind in types):
        return False
    for name, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        if isinstance(inner := schema.get(name), list) and not enough(
            _is_of(value, one, root, followed, deep + 1) for one in inner
        ):
            return False
    return True


def _is_typed(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(kind, (object,)) if isinstance(kind, str) else (object,))


def _same(value: Any, choice: Any) -> bool:
    return bool(value == choice) and isinstance(value, bool) is isinstance(choice, bool)


def resolved(reference: Any, root: Mapping[str, Any]) -> Any:
    """What a reference within the schema leads to; True, which allows all, where it leads nowhere."""
    found: Any = root
    pointer = unquote(str(reference)).removeprefix("#").strip("/")
    for part in pointer.split("/") if pointer else ():
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            place = int(name) if _PLACE.fullmatch(name) else len(found)
            found = found[place] if place < len(found) else True
        else:
            found = found.get(name, True) if isinstance(found, Mapping) else True
    return found
