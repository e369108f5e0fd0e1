"""From the items of /v1/responses to a chat's body, and from a chat's errors back to the caller's names; knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.other_names import OtherNames
from nereid.serving.gateway.problems import refusal
from nereid.serving.gateway.response_bodies import (
    CALLS,
    LOGPROBS,
    OUTPUTS,
    CallItem,
    CustomCallItem,
    FlatAllowed,
    FlatName,
    Item,
    ItemReference,
    Kept,
    MessageItem,
    ReasoningItem,
    ResponsesBody,
)
from nereid.serving.gateway.schemas import GATEWAY_FIELDS, ChatBody

Items = Sequence[Kept]
_ITEMS: TypeAdapter[list[Any]] = TypeAdapter(list[Item])

NAMES = OtherNames(
    (
        ("max_completion_tokens", "max_output_tokens"),
        ("max_tokens", "max_output_tokens"),
        ("response_format.json_schema", "text.format"),
        ("response_format", "text.format"),
        ("reasoning_effort", "reasoning.effort"),
        (".allowed_tools.tools", ".tools"),
        (".custom.format.grammar.", ".format."),
        (".function.", "."),
        (".custom.", "."),
        ("messages", "input"),
    )
)
"""A chat's names, and what /v1/responses calls the same."""


def items_of(kept: Sequence[Mapping[str, Any]]) -> list[Kept]:
    """Items that were kept as JSON."""
    return _ITEMS.validate_python(kept)


def resolved(items: Sequence[Kept | ItemReference], find: Callable[[str], Mapping[str, Any] | None]) -> list[Kept]:
    """Items in the place of references to them; `find` gives what is kept by its id. Raises ApiError for what is not."""
    made: list[Kept] = []
    for place, item in enumerate(items):
        if not isinstance(item, ItemReference):
            made.append(item)
            continue
        kept = find(item.id)
        if kept is None:
            field = f"input.{place}.id"
            raise ApiError(
                400, f"{field}: {item.id[:80]!r} is not kept here; send the item itself", param=field, code="item_not_found"
            )
        made += items_of([kept])
    return made


def chat_body(body: ResponsesBody, conversation: Items) -> ChatBody:
    """The same as a chat. Raises ApiError in the caller's names."""
    sent: dict[str, Any] = {field.name: getattr(body, field.name) for field in GATEWAY_FIELDS}
    sent |= {
        "model": body.model,
        "messages": messages_of(conversation, body.instructions),
        "max_completion_tokens": body.max_output_tokens,
        "tools": [tool.for_chat for tool in body.tools or ()],
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": body.text.format.for_chat if body.text.format.type != "text" else None,
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
        "chat_template_kwargs": body.chat_template_kwargs,
        "logprobs": LOGPROBS in body.include or bool(body.top_logprobs),
        "top_logprobs": body.top_logprobs,
    }
    try:
        return ChatBody.model_validate(sent)
    except ValidationError as error:
        raise NAMES.refusal(refusal(ChatBody, error.errors(include_url=False))) from None


def _choice(choice: str | FlatName | FlatAllowed | None) -> Any:
    if isinstance(choice, FlatName):
        return choice.for_chat
    if isinstance(choice, FlatAllowed):
        tools = [tool.for_chat for tool in choice.tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}
    return choice


def check_calls(items: Items, before: Items) -> None:
    """That every output has its call, among the items or in the conversation `before` them; raises ApiError."""
    known = {(item.type, item.call_id) for item in before if isinstance(item, CALLS)}
    for place, item in enumerate(items):
        if isinstance(item, CALLS):
            known.add((item.type, item.call_id))
        elif isinstance(item, OUTPUTS) and (kind := item.type.removesuffix("_output"), item.call_id) not in known:
            field = f"input.{place}.call_id"
            sentence = f"{item.call_id[:80]!r} is not allowed; it must be that of a {kind} before it"
            raise ApiError(400, f"{field}: {sentence}", param=field)


def messages_of(items: Items, instructions: str | None) -> list[dict[str, Any]]:
    """Thoughts, text and calls of one turn become one assistant's message."""
    made: list[dict[str, Any]] = []
    if instructions is not None:
        made.append({"role": "system", "content": instructions})
    turn: dict[str, Any] | None = None
    for item in items:
        if isinstance(item, OUTPUTS):
            made.append({"role": "tool", "tool_call_id": item.call_id, "content": item.text})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            made.append({"role": item.role, "content": item.text})
        else:
            if turn is None:
                turn = {"role": "assistant", "content": None}
                made.append(turn)
            _add(turn, item)
            continue
        turn = None
    for message in made:
        if message["role"] == "assistant" and message["content"] is None and not message.get("tool_calls"):
            message["content"] = ""  # thoughts alone: an answer that was cut
    return made


def _add(turn: dict[str, Any], item: Kept) -> None:
    match item:
        case ReasoningItem():
            turn["reasoning_content"] = turn.get("reasoning_content", "") + item.text
        case MessageItem():
            turn["content"] = (turn["content"] or "") + item.text
        case CallItem():
            function = {"name": item.name, "arguments": item.arguments}
            turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
        case CustomCallItem():
            custom = {"name": item.name, "input": item.input}
            turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "custom", "custom": custom})
