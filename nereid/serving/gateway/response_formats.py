"""What `response_format` binds an answer to, of chats and of completions; knows no route and no model."""

from __future__ import annotations

from typing import Any

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.schemas import ChatBody, CompletionBody

Body = ChatBody | CompletionBody


def names_of_answer(body: Body) -> dict[str, str]:
    """The caller's names of `llm`'s inputs, where that field is sent."""
    return {"structured_outputs": "response_format", "structured_outputs.json": name_of_schema(body)}


def name_of_schema(body: Body) -> str:
    """Where a body has what binds the answer's text."""
    plain = body.response_format is not None and body.response_format.json_schema is None
    return "response_format.schema" if plain else "response_format.json_schema.schema"


def schema_of_answer(body: Body) -> dict[str, Any] | None:
    """The schema of the answer's text; None where it is free. Raises ApiError."""
    wanted = body.response_format
    if wanted is None:
        return None
    if wanted.json_schema is not None and wanted.type != "json_schema":
        raise _not_allowed("json_schema", f"type {wanted.type}; the type must be json_schema")
    if wanted.json_schema is not None and wanted.schema_ is not None:
        raise _not_allowed("schema", "json_schema; send one of them")
    if wanted.type == "text":
        if wanted.schema_ is not None:
            raise _not_allowed("schema", "type text; the type must be json_object or json_schema")
        return None
    if body.structured_outputs is not None:
        raise ApiError(400, "response_format: structured_outputs is given, too; send one of them", param="response_format")
    if wanted.schema_ is not None:
        return wanted.schema_
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise ApiError(400, "response_format.json_schema: it is missing", param="response_format.json_schema")
    return wanted.json_schema.schema_


def _not_allowed(name: str, beside: str) -> ApiError:
    return ApiError(400, f"response_format.{name}: it is not allowed with {beside}", param=f"response_format.{name}")
