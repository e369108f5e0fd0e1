"""Tools of a chat: what may be sent, and what it comes to; knows no route and no template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import jsonschema

from nereid.llm.json_schemas import newest, parts
from nereid.llm.patterns import fault_of_pattern, patterns
from nereid.serving.gateway.call_objects import NAME
from nereid.serving.gateway.custom_inputs import of_all
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.nesting import levels

if TYPE_CHECKING:
    from nereid.serving.gateway.messages import AllowedTools, AnyTool, Message, NamedCustom, NamedTool

    Choice: TypeAlias = str | NamedTool | NamedCustom | AllowedTools | None

MOST_TOOLS = 128
"""OpenAI's bound."""
MOST_CHARACTERS = 100_000
"""Of all schemas together: to check one takes time by its length."""
MOST_LEVELS = 64
"""Of one schema: its check goes down by recursion, to a depth that differs between interpreters."""
_MOST_TYPES = 7
"""Those that JSON has."""
_NO_FORMATS = jsonschema.FormatChecker(())
"""Python's reader of regular expressions is none of JSON Schema's: it lacks `\\p{L}`, and some it only fails over."""
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsAsked:
    """The functions that may be called. `tools` is what a template is shown.

    `must`: the answer is nothing but calls; `strict`: calls obey their schemas, also where text is allowed.
    """

    tools: tuple[Mapping[str, Any], ...]
    schemas: Mapping[str, Mapping[str, Any]]
    must: bool
    strict: bool
    several: bool
    custom: frozenset[str] = frozenset()
    """The names of those that are no functions, but custom tools."""


def tools_asked(tools: Sequence[AnyTool] | None, choice: Choice, several: bool) -> ToolsAsked | None:
    """None where nothing may be called; raises ApiError for tools that are none, and for a choice of what is not there."""
    known = _checked(tools or ())
    chosen, must = _chosen(known, choice)
    if not chosen:
        return None
    return ToolsAsked(
        tools=tuple(tool.for_template for tool in chosen.values()),
        schemas={name: tool.function.parameters or _NO_PARAMETERS for name, tool in chosen.items()},
        must=must,
        strict=any(tool.function.strict for tool in chosen.values()),
        several=several,
        custom=frozenset(name for name, tool in chosen.items() if tool.type == "custom"),
    )


def _checked(tools: Sequence[AnyTool]) -> dict[str, AnyTool]:
    found: dict[str, AnyTool] = {}
    left = MOST_CHARACTERS
    for place, tool in enumerate(tools):
        where, name = f"tools.{place}.{tool.type}", tool.function.name
        if not NAME.fullmatch(name):
            raise _wrong(f"{where}.name", name, "1 to 64 of A-Z a-z 0-9 . _ -")
        if name in found:
            raise _wrong(f"{where}.name", name, "another name: there is a tool of this one")
        if tool.function.parameters is not None:
            if levels(tool.function.parameters) > MOST_LEVELS:
                sentence = f"{where}.parameters: it is nested too deeply; it must have at most {MOST_LEVELS} levels"
                raise ApiError(400, sentence, param=f"{where}.parameters")
            text = json.dumps(tool.function.parameters, ensure_ascii=False)
            left -= len(text)
            if left < 0:
                sentence = f"tools: the schemas are too long; they must have at most {MOST_CHARACTERS} characters together"
                raise ApiError(400, sentence, param="tools")
            _check_schema(f"{where}.parameters", text)
        if tool.type == "custom" and tool.pattern is not None:
            # As it is sent, and as it is bound: there it may mean something else.
            _check_pattern(f"{where}.format.grammar.definition", tool.pattern, of_all(tool.pattern))
        found[name] = tool
    return found


def check_bindable(tools: Sequence[AnyTool], asked: ToolsAsked) -> None:
    """That the regular expressions in the schemas of functions can bind their arguments; raises ApiError."""
    for place, tool in enumerate(tools):
        schema = asked.schemas.get(tool.function.name)
        if tool.type == "function" and schema is not None:
            for path, pattern in patterns(schema):
                _check_pattern(f"tools.{place}.function.parameters.{path}", pattern)


def _check_pattern(where: str, pattern: str, *as_well: str) -> None:
    for text in (pattern, *as_well):
        if (fault := fault_of_pattern(text)) is not None:
            raise _wrong(where, pattern, f"a regular expression that text can be bound to: {fault}")


def _check_schema(where: str, text: str) -> None:
    fault = _fault(text)
    if fault is not None:
        path = ".".join([where, *fault[0]])
        raise ApiError(400, f"{path}: {fault[1]}", param=path)


@lru_cache(maxsize=128)
def _fault(text: str) -> tuple[tuple[str, ...], str] | None:
    """Where and why this is no JSON schema of an object, of whatever draft: arguments have names.

    Agents send the same ones with every turn.
    """
    schema = json.loads(text)
    if schema.get("type", "object") != "object":
        return ("type",), f"{str(schema['type'])[:80]!r} is not allowed; it must be object"
    if (path := _long_type(schema)) is not None:
        return (path,), f"so many types are not allowed; it must have at most {_MOST_TYPES}"
    try:
        jsonschema.Draft202012Validator.check_schema(newest(schema), _NO_FORMATS)
    except jsonschema.SchemaError as error:
        return tuple(str(part) for part in error.absolute_path), f"this is no JSON schema: {error.message[:200]}"
    return None


def _long_type(schema: Any) -> str | None:
    """The path to a list of more types than there are, which would be compared with each other; None where there is none."""
    if not isinstance(schema, Mapping):
        return None
    if isinstance(schema.get("type"), list) and len(schema["type"]) > _MOST_TYPES:
        return "type"
    return next((f"{path}.{inner}" for path, part in parts(schema) if (inner := _long_type(part)) is not None), None)


def _chosen(known: Mapping[str, AnyTool], choice: Choice) -> tuple[dict[str, AnyTool], bool]:
    """Those that may be called, and whether one must be."""
    if choice is None or choice in ("auto", "none"):
        return ({} if choice == "none" else dict(known)), False
    if not known:
        raise ApiError(400, "tool_choice: it is not allowed without tools; send tools, or leave it out", param="tool_choice")
    if isinstance(choice, str):
        return dict(known), True
    field, names = choice.named
    for name in names:
        if name not in known:
            raise _wrong(field, name, f"one of tools: {', '.join(known)}"[:500])
    return {name: known[name] for name in dict.fromkeys(names)}, choice.must


def check_messages(messages: Sequence[Message]) -> None:
    """That every tool's message answers a call before it, and that fields stand where they mean something; raises ApiError."""
    called: set[str] = set()
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        if message.tool_calls and message.role != "assistant":
            raise ApiError(400, f"{where}.tool_calls: only an assistant's message may have them", param=f"{where}.tool_calls")
        if message.content is None and message.role != "assistant":
            said = "it is missing; only an assistant's message may be without"
            raise ApiError(400, f"{where}.content: {said}", param=f"{where}.content", code="missing_required_parameter")
        called.update(call.id for call in message.tool_calls or ())
        if message.role == "tool":
            field = f"{where}.tool_call_id"
            if message.tool_call_id is None:
                raise ApiError(400, f"{field}: it is missing", param=field, code="missing_required_parameter")
            if message.tool_call_id not in called:
                raise _wrong(field, message.tool_call_id, "the id of a call in an assistant's message before it")
        elif message.tool_call_id is not None:
            raise ApiError(400, f"{where}.tool_call_id: only a tool's message may have it", param=f"{where}.tool_call_id")


def _wrong(field: str, value: object, allowed: str) -> ApiError:
    shown = repr(value[:80] if isinstance(value, str) else value)[:100]
    return ApiError(400, f"{field}: {shown} is not allowed; it must be {allowed}", param=field)
