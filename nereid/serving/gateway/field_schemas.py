"""JSON schemas of sampling parameters, from their table; knows no body."""

from __future__ import annotations

from typing import Any

from nereid_protocol.sampling_field import Kind, SamplingField


def schema_of(field: SamplingField) -> dict[str, Any]:
    """What may be sent as this parameter; that numbers, lists and objects may come as text is left out."""
    return {"description": field.help, **_typed(field)}


def _typed(field: SamplingField) -> dict[str, Any]:
    match field.kind:
        case Kind.NUMBER:
            return {"type": "number", **_bounds(field)}
        case Kind.INTEGER:
            return {"type": "integer", **_bounds(field)}
        case Kind.FLAG:
            return {"type": "boolean"}
        case Kind.TEXT:
            return {
                "type": "string",
                **_known(enum=list(field.choices) or None, minLength=field.least or None, maxLength=field.length),
            }
        case Kind.TEXTS:
            one = {"type": "string", "minLength": 1, **_known(maxLength=field.length)}
            return {"anyOf": [one, {"type": "array", "items": one, **_known(maxItems=field.most)}]}
        case Kind.TOKEN_IDS:
            entries = _known(minItems=field.least or None, maxItems=field.most)
            return {"type": "array", "items": {"type": "integer", **_bounds(field)}, **entries}
        case Kind.BIASES:
            each = {"type": "number", **_bounds(field)}
            return {"type": "object", "additionalProperties": each, **_known(maxProperties=field.most)}
        case Kind.SCHEMA:
            return {"anyOf": [{"type": "object"}, {"type": "string"}]}
        case Kind.OBJECT:
            members = {member.name: schema_of(member) for member in field.members}
            return {"type": "object", "properties": members, "additionalProperties": False}


def _bounds(field: SamplingField) -> dict[str, Any]:
    return _known(minimum=field.low, maximum=field.high)


def _known(**words: Any) -> dict[str, Any]:
    return {name: value for name, value in words.items() if value is not None}
