"""OpenAI's older form of tools in chats: `functions`, `function_call`, messages of the role "function"; knows no route.

A chat in it is read as the same chat with tools, of which one call may be made (OpenAI's API reference, "Chat Completions": the
deprecated fields). Its errors have the caller's names.
"""

from __future__ import annotations

from collections.abc import Sequence

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.messages import FunctionName, Message, NamedTool, Tool, ToolCall
from nereid.serving.gateway.other_names import OtherNames
from nereid.serving.gateway.schemas import ChatBody

OLDER_NAMES = OtherNames((("tools", "functions"), ("tool_choice", "function_call"), (".function.", ".")), kept=("messages",))
"""Of tools, and what the older form calls the same."""


def in_todays_form(body: ChatBody) -> ChatBody:
    """The chat with tools and their calls; raises ApiError for what the older form cannot say."""
    messages = with_tool_calls(body.messages)
    if not body.functions:
        if isinstance(body.function_call, FunctionName) or (body.function_call == "none" and body.tools):
            sentence = "it is not allowed without functions; send functions, or leave it out"
            raise ApiError(400, f"function_call: {sentence}", param="function_call")
        return body.model_copy(update={"messages": messages})
    for beside, idle in (("tools", (None, [])), ("tool_choice", (None, "auto"))):
        if getattr(body, beside) not in idle:
            raise ApiError(400, f"{beside}: it is not allowed with functions; one of them must be absent", param=beside)
    choice = body.function_call
    if isinstance(choice, FunctionName) and choice.name not in (known := [function.name for function in body.functions]):
        sentence = f"{choice.name[:80]!r} is not allowed; it must be one of functions: {', '.join(known)}"
        raise ApiError(400, f"function_call.name: {sentence[:600]}", param="function_call.name")
    if body.structured_outputs is not None and choice != "none":
        sentence = "it is not allowed with functions; send one of them"
        raise ApiError(400, f"structured_outputs: {sentence}", param="structured_outputs")
    named = NamedTool(type="function", function=choice) if isinstance(choice, FunctionName) else choice
    tools = [Tool(function=function) for function in body.functions]
    more = {"tools": tools, "tool_choice": named, "parallel_tool_calls": False, "messages": messages}
    return body.model_copy(update=more)


def with_tool_calls(messages: Sequence[Message]) -> list[Message]:
    """Function calls as calls of tools, with ids that nobody sees, and the functions' messages as their results."""
    made: list[Message] = []
    calls: dict[str, str] = {}
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        if message.role == "function":
            identity = calls.get(message.name or "")
            if identity is None:
                shown = "it is missing" if message.name is None else f"{message.name[:80]!r} is not allowed"
                sentence = f"{shown}; it must be the name of a function_call in an assistant's message before it"
                raise ApiError(400, f"{where}.name: {sentence}", param=f"{where}.name")
            content = "" if message.content is None else message.content
            message = message.model_copy(update={"role": "tool", "tool_call_id": identity, "content": content})
        elif (call := message.function_call) is not None:
            if message.role != "assistant" or message.tool_calls:
                sentence = "only an assistant's message without tool_calls may have it"
                raise ApiError(400, f"{where}.function_call: {sentence}", param=f"{where}.function_call")
            identity = calls[call.name] = f"function_call_{place}"
            todays = [ToolCall(id=identity, function=call)]
            message = message.model_copy(update={"tool_calls": todays, "function_call": None})
        made.append(message)
    return made
