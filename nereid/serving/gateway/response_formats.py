"""What `response_format` binds an answer to, of chats and of completions; knows no route and no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.schemas import ChatBody, CompletionBody

NAMES_OF_ANSWER: Mapping[str, str] = {
    "structured_outputs": "response_format",
    "structured_outputs.json": "response_format.json_schema.schema",
}
"""The caller's names of `llm`'s inputs, where that field is sent."""


def schema_of_answer(body: ChatBody | CompletionBody) -> dict[str, Any] | None:
    """The schema of the answer's text; None where it is free. Raises ApiError."""
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if body.structured_outputs is not None:
        raise ApiError(400, "response_format: structured_outputs is given, too; send one of them", param="response_format")
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise ApiError(400, "response_format.json_schema: it is missing", param="response_format.json_schema")
    return wanted.json_schema.schema_
