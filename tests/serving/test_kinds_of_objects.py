"""Objects of one of several kinds: what theirs does not know is refused, or left out by a lenient gateway, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nereid.serving.gateway.bodies import IGNORED, made_of
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.response_bodies import ResponsesBody
from nereid.serving.gateway.schemas import ChatBody
from nereid.serving.gateway.sent import Sent

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
FUNCTION = {"type": "function", "function": {"name": "f"}}


def left_out(schema: type[Sent], body: dict[str, Any], *, lenient: bool = True) -> tuple[Any, set[str]]:
    """What is taken of a body, and the names of what is not."""
    request: Any = SimpleNamespace(scope={"state": {}})
    made = made_of(body, request, schema, lenient)
    return made.model_dump(exclude_unset=True), set(request.scope["state"].get(IGNORED, ()))


@pytest.mark.parametrize(
    ("schema", "body", "choice", "unknown"),
    [
        (ChatBody, CHAT, FUNCTION, {"q": 1}),
        (ChatBody, CHAT, {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [FUNCTION]}}, {"q": 1}),
        (ResponsesBody, {"input": "x"}, {"type": "function", "name": "f"}, {"q": 1}),
        (
            ResponsesBody,
            {"input": "x"},
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            {"q": 1},
        ),
    ],
    ids=str,
)
def test_the_fields_of_the_kind_that_is_meant_stay(
    schema: type[Sent], body: dict[str, Any], choice: dict[str, Any], unknown: dict[str, Any]
) -> None:
    made, names = left_out(schema, {**body, "tool_choice": {**choice, **unknown}})
    assert (made["tool_choice"], names) == (choice, {"tool_choice.q"})


def test_so_do_those_within_them() -> None:
    made, names = left_out(ChatBody, {**CHAT, "tool_choice": {"type": "function", "function": {"name": "f", "x": 1}, "q": 1}})
    assert (made["tool_choice"], names) == (FUNCTION, {"tool_choice.function.x", "tool_choice.q"})


def test_a_kind_that_nobody_knows_is_refused_by_its_name() -> None:
    with pytest.raises(
        ApiError, match=r"tool_choice\.type: 'web_search' is not allowed; it must be 'function' or 'custom' or 'allowed_tools'"
    ):
        left_out(ChatBody, {**CHAT, "tool_choice": {"type": "web_search", "q": 1}})


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    ("schema", "body", "choice", "sentence"),
    [
        (ChatBody, CHAT, {"type": "allowed_tools"}, "tool_choice.allowed_tools: it is missing"),
        (ResponsesBody, {"input": "x"}, {"type": "allowed_tools", "mode": "auto"}, "tool_choice.tools: it is missing"),
        (ResponsesBody, {"input": "x"}, {"type": "function"}, "tool_choice.name: it is missing"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_of_the_kind_that_is_meant(
    schema: type[Sent], body: dict[str, Any], choice: dict[str, Any], sentence: str, lenient: bool
) -> None:
    with pytest.raises(ApiError) as error:
        left_out(schema, {**body, "tool_choice": choice}, lenient=lenient)
    assert error.value.message == sentence
