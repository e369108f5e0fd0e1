"""What a lenient gateway leaves out of an object that may be one of several: what its own kind does not know, and no more."""

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


def left_out(schema: type[Sent], body: dict[str, Any]) -> tuple[Any, set[str]]:
    """What is taken of a body, and the names of what is not."""
    request: Any = SimpleNamespace(scope={"state": {}})
    made = made_of(body, request, schema, True)
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
        ApiError, match=r"tool_choice\.type: 'web_search' is not allowed; it must be 'function' or 'allowed_tools'"
    ):
        left_out(ChatBody, {**CHAT, "tool_choice": {"type": "web_search", "q": 1}})
