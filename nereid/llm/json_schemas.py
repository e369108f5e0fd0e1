"""JSON schemas as their authors write them, brought to the form that llguidance reads; knows no grammar and no request.

Libraries write words that bind nothing (`propertyNames` of texts, `format` of a number's width), bounds that nothing reaches
(`maxLength` of 2^53 - 1), null for what is absent, and references that are no URIs. llguidance refuses each, and with it all the
tools of a request, though none changes what a schema allows. What does change that, and cannot be bound, is left to be refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

_FORMATS = frozenset("date-time date time duration email hostname ipv4 ipv6 uuid uri".split())
"""Those that bind a text; of any other the JSON Schema specification (2020-12, validation, 7.2) has it that it describes one."""
_LARGEST = 9_200_000_000_000_000_000
"""Bounds of numbers beyond it (the smallest of int64, the largest of a double) become this one: its digits can be counted."""
_LONGEST = 2**31 - 1
"""Characters, items or members; nothing that is written has more."""
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems")
_OF_ONE = (
    *("items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
_MOST_COPIED = 20_000
"""Characters of a schema for all the names that it is for: such schemas may stand in each other."""
_MAY_BE_NULL = frozenset({"const", "default", "example"})
_UNBOUND = frozenset(
    "uniqueItems not if then else contains minContains maxContains propertyNames dependencies dependentRequired dependentSchemas "
    "unevaluatedItems unevaluatedProperties $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor".split()
)
"""Words that llguidance refuses."""
_SAYS_NOTHING: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), (True, {})),
    **dict.fromkeys(("dependencies", "dependentRequired", "dependentSchemas"), ({},)),
}
"""Values with which some of them bind nothing."""
ANNOTATIONS = frozenset("title description default deprecated readOnly writeOnly examples $comment".split())
"""Words that bind nothing (JSON Schema 2020-12: validation, 9; core, 8.3)."""
_DRAFT = re.compile(r"https?://json-schema\.org/(?:(draft-0[467])|(draft/2019-09|draft/2020-12))/schema#?")
_IN_FRAGMENTS = "%/?:;,@&=+$!*'()~-._"
"""What may stand in a URI's fragment as it is (RFC 3986, 3.5)."""
_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def within(schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The same schema with each schema that stands in it changed; what is data (`enum`, `default`) stays as it is."""
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, Mapping):
            made[key] = {name: change(inner) for name, inner in value.items()}
        elif key in (*_OF_SEVERAL, *_OF_ONE) and isinstance(value, list):
            made[key] = [change(inner) for inner in value]
        else:
            made[key] = change(value) if key in _OF_ONE else value
    return made


def without_nulls(schema: Any) -> Any:
    """The same schema without keywords that are null: Go writes so a list that nobody has made."""
    if not isinstance(schema, Mapping):
        return schema
    return within({key: value for key, value in schema.items() if value is not None or key in _MAY_BE_NULL}, without_nulls)


def newest(schema: Any) -> Any:
    """The same schema with older drafts' tuples (`items` a list) and bounds (`exclusiveMinimum` true) as 2020-12 has them."""
    if not isinstance(schema, Mapping):
        return schema
    made = within(schema, newest)
    if isinstance(made.get("items"), list):
        made["prefixItems"] = made.pop("items")
        if "additionalItems" in made:
            made["items"] = made.pop("additionalItems")
    for exclusive, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(made.get(exclusive), bool):
            excluded = made.pop(exclusive)
            if excluded and plain in made:
                made[exclusive] = made.pop(plain)
    return made


def readable(schema: Any) -> Any:
    """The same schema as llguidance reads it; where it allows nothing at all (`not` of everything), False."""
    if not isinstance(schema, Mapping):
        return schema
    made = {key: value for key, value in schema.items() if value is not None or key in _MAY_BE_NULL}
    if made.get("not") is True or made.get("not") == {}:
        return False
    made = _with_names(within(made, readable))
    for key in ("$ref", "$id"):
        if isinstance(made.get(key), str):
            made[key] = _as_uri(made[key])
    if "$schema" in made and (draft := _draft(made.pop("$schema"))):
        made["$schema"] = draft
    if isinstance(made.get("format"), str) and made["format"] not in _FORMATS:
        del made["format"]
    for word, values in _SAYS_NOTHING.items():
        if word in made and any(made[word] == value and type(made[word]) is type(value) for value in values):
            del made[word]
    return _bounded(made)


def unbindable(schema: Any) -> str | None:
    """The first word that cannot be bound, with the path to it; None where there is none."""
    return _unbindable(readable(schema))


def _unbindable(schema: Any) -> str | None:
    if not isinstance(schema, Mapping):
        return None
    if found := next((word for word in schema if word in _UNBOUND), None):
        return found
    return next((f"{path}.{fault}" for path, part in parts(schema) if (fault := _unbindable(part))), None)


def parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas that stand in one, with the paths to them."""
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", part) for name, part in value.items())
        elif key in (*_OF_SEVERAL, *_OF_ONE) and isinstance(value, list):
            yield from ((f"{key}.{place}", part) for place, part in enumerate(value))
        elif key in _OF_ONE:
            yield key, value


def _with_names(schema: dict[str, Any]) -> dict[str, Any]:
    """`propertyNames`, which llguidance does not know, as words that it does, where that can be said."""
    names, others = schema.get("propertyNames"), schema.get("additionalProperties", True)
    if names is True:
        names = {}
    if not isinstance(names, Mapping) or names.get("type", "string") != "string" or "patternProperties" in schema:
        return schema
    said = {key: value for key, value in names.items() if key not in ANNOTATIONS and key != "type"}
    made = {key: value for key, value in schema.items() if key != "propertyNames"}
    known = schema.get("properties", {})
    if not said:
        return made
    if said.keys() == {"enum"} and isinstance(said["enum"], list) and isinstance(known, Mapping):
        wanted = dict.fromkeys(name for name in said["enum"] if isinstance(name, str))
        if sum(name not in known for name in wanted) * len(json.dumps(others)) > _MOST_COPIED:
            return schema
        allowed = {name: known.get(name, others) for name in wanted}
        return {**made, "properties": {**dict.fromkeys(known, False), **allowed}, "additionalProperties": False}
    if said.keys() == {"pattern"} and isinstance(said["pattern"], str) and not known:
        return {**made, "patternProperties": {said["pattern"]: others}, "additionalProperties": False}
    return schema


def _as_uri(reference: str) -> str:
    """A reference whose letters may all stand in one: names of types in brackets may not."""
    address, mark, fragment = reference.partition("#")
    return _NO_ESCAPE.sub("%25", f"{quote(address, safe=_IN_FRAGMENTS)}{mark}{quote(fragment, safe=_IN_FRAGMENTS)}")


def _draft(address: object) -> str | None:
    """A draft's own address, of one that is written as the other drafts' are; None where it is none that is known."""
    found = _DRAFT.fullmatch(address) if isinstance(address, str) else None
    if found is None:
        return None
    return f"http://json-schema.org/{found[1]}/schema#" if found[1] else f"https://json-schema.org/{found[2]}/schema"


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Bounds as they are counted: whole numbers of characters and items, and numbers of no more digits than there are."""
    for key in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"):
        value = schema.get(key)
        if isinstance(value, float) and value.is_integer():
            schema[key] = value = int(value)
        if key.startswith("max") and isinstance(value, int) and value > _LONGEST:
            del schema[key]
    for key, sign in (("minimum", -1), ("exclusiveMinimum", -1), ("maximum", 1), ("exclusiveMaximum", 1)):
        value = schema.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and sign * value > _LARGEST:
            schema[key] = sign * _LARGEST
    return schema
