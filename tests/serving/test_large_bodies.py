"""Bodies with much that is wrong, or with long names: refused in one short sentence, after work that does not grow with them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from nereid.serving.gateway.bodies import MOST_MEMBERS, made_of, parse_json
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.response_bodies import ResponsesBody
from nereid.serving.gateway.schemas import ChatBody, CompletionBody, EmbeddingBody, LayoutBody
from nereid.serving.gateway.tokenizing import DetokenizeBody

MANY = 60_000
NAMES = {f"k{place}": 1 for place in range(MANY)}
USER = {"role": "user", "content": "x"}
REQUEST: Any = SimpleNamespace(scope={"state": {}})


def refused(schema: type[BaseModel], body: dict[str, Any], *, lenient: bool = False) -> dict[str, Any]:
    with pytest.raises(ApiError) as error:
        made_of(parse_json(json.dumps({"model": "llm", **body}).encode()), REQUEST, schema, lenient)
    told: dict[str, Any] = error.value.body()["error"]
    assert len(told["message"]) < 400
    return told


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [USER], **NAMES}, None),
        ({"messages": [{**USER, **NAMES}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{}] * MANY}]}, "messages"),
        ({"messages": [USER], "metadata": NAMES}, "metadata"),
        ({"messages": [USER], "chat_template_kwargs": {"a": [[[NAMES]]]}}, "chat_template_kwargs"),
    ],
    ids=["fields", "members", "objects", "ignored", "within"],
)
def test_a_body_has_so_many_members_and_no_more(body: dict[str, Any], param: str | None) -> None:
    told = refused(ChatBody, body)
    assert told["param"] == param
    assert str(MOST_MEMBERS) in told["message"]


def test_members_are_counted_and_not_the_marks_of_a_text() -> None:
    told = parse_json(json.dumps({"prompt": "{:" * MANY, "tokens": list(range(MANY))}).encode())
    assert len(told["prompt"]) == 2 * MANY
    assert parse_json(json.dumps({f"k{place}": {} for place in range(MOST_MEMBERS // 2 - 1)}).encode())


@pytest.mark.parametrize(
    ("schema", "body", "param"),
    [
        (CompletionBody, {"prompt": ["a", 1] * MANY}, "prompt.0"),
        (CompletionBody, {"prompt": [[1], [-1]] * MANY}, "prompt.1.0"),
        (CompletionBody, {"prompt": [-1] * MANY}, "prompt.0"),
        (EmbeddingBody, {"input": [1.5] * MANY}, "input.0"),
        (DetokenizeBody, {"tokens": ["a"] * MANY}, "tokens.0"),
        (ChatBody, {"messages": [1] * MANY}, "messages"),
        (ChatBody, {"messages": [{"role": "user", "content": [1] * MANY}]}, "messages.0.content"),
        (ResponsesBody, {"input": [1] * MANY}, "input"),
        (ResponsesBody, {"input": [{"role": "user", "content": [1] * MANY}]}, "input.0.content"),
        (ResponsesBody, {"input": "x", "include": [1] * MANY}, "include"),
        (LayoutBody, {"canvas": 320, "elements": [1] * MANY}, "elements"),
    ],
)
def test_of_a_long_list_of_wrong_entries_few_are_looked_at(schema: type[BaseModel], body: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as error:
        schema.model_validate({"model": "llm", **body})
    assert error.value.error_count() <= 1001
    assert refused(schema, body)["param"] == param


def test_a_lenient_gateway_leaves_out_no_more_than_some_names() -> None:
    few = dict.fromkeys(list(NAMES)[:1000], 1)
    assert made_of({"model": "llm", "messages": [USER], **few}, REQUEST, ChatBody, True).messages[0].content == "x"
    assert refused(ChatBody, {"messages": [USER], **dict(list(NAMES.items())[:1001])}, lenient=True)["param"] == "k0"


LONG = "k" * 5000


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [USER], LONG: 1},
        {"messages": [{**USER, LONG: 1}]},
        {"messages": [USER], "structured_outputs": {LONG: 1}},
        {"messages": [USER], "logit_bias": {LONG: 101}},
        {"messages": [USER], "response_format": {"type": LONG}},
        {"messages": [{"role": LONG, "content": "x"}]},
    ],
    ids=["field", "member", "option", "token", "type", "role"],
)
def test_a_name_that_was_made_up_is_told_in_part(body: dict[str, Any]) -> None:
    told = refused(ChatBody, body)
    assert len(told["param"]) <= 203
    assert told["message"].startswith(f"{told['param']}: ")
