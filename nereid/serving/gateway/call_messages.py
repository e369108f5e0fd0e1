"""Tools and earlier calls of them in the form that a chat template takes; knows no template's text and no HTTP.

Templates differ in what they do with a message of calls: some take arguments as text, some show no calls beside an empty
content or beside a text, or only the first of several, or refuse thoughts beside a text. What one takes is tried out, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import Any

from nereid.serving.gateway.call_forms import Ids

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
Write = Callable[[Sequence[tuple[str, Mapping[str, Any] | str]]], str | None]
"""Calls, each a name and arguments, as a model writes them; None where that cannot be said."""
Render = Callable[[Sequence[Message], Sequence[Tool]], str]

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which an assistant's message holds its reasoning; templates read the first, some the second."""
_BETWEEN = "\n\n"
_NOTHING: Mapping[str, Any] = {"description": "", "parameters": {"type": "object", "properties": {}}}
"""What stands for members of a function that may be left out."""
_PROBE = {"name": "probe", **_NOTHING}


class ArgumentsObject(dict[str, Any]):
    """A call's arguments: an object to templates that write JSON themselves, and to those that do not, the text that it was."""

    __slots__ = ("_text",)

    def __init__(self, members: Mapping[str, Any], text: str) -> None:
        super().__init__(members)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: object) -> str:
        return self._text + other if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> str:
        return other + self._text if isinstance(other, str) else NotImplemented


def arguments_of(text: str) -> ArgumentsObject | str:
    """What a template is given; the text itself where it is none of an object: an agent sends back what a model wrote amiss.

    So is the text of an object that no template can write: half of a surrogate pair is no Unicode, NaN no JSON.
    """
    try:
        members = json.loads(text)
        json.dumps(members, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return text
    return ArgumentsObject(members, text) if isinstance(members, dict) else text


@dataclass(frozen=True, slots=True, kw_only=True)
class CallManners:
    """What a template takes in a message of calls. `empty`: the members that stand for no content, by what was sent, None or "".

    `shown`: whether calls are shown at all, `with_text`: beside a text, `with_both`: beside thoughts and a text; `several`: all
    of several calls; `any_text`: arguments that are no object. `needed`: members of a function that it fails without, with what
    stands for none.
    """

    empty: Mapping[str | None, Message]
    shown: bool = True
    with_text: bool = True
    with_both: bool = True
    several: bool = True
    any_text: bool = True
    needed: Mapping[str, Any] = field(default_factory=dict)

    def fitted_tools(self, tools: Sequence[Tool]) -> list[Tool]:
        return [{**tool, "function": self._whole(tool["function"])} if "function" in tool else tool for tool in tools]

    def _whole(self, function: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**function, **{name: value for name, value in self.needed.items() if function.get(name) is None}}

    def fitted(self, messages: Sequence[Message], write: Write | None = None) -> list[Message]:
        """The conversation as the template takes it; its messages have no members that are None.

        Calls that it does not show stand in their message's content as `write` has the model write them.
        """
        if not self.shown and write is not None:
            messages = [_written(message, write) if message.get("tool_calls") else message for message in messages]
        apart = list(messages) if self.several else _one_by_one(messages)
        return [part for message in apart for part in (self._fitted(message) if message.get("tool_calls") else (message,))]

    def _fitted(self, message: Message) -> list[Message]:
        if not self.any_text:
            message = {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        content, calls = message.get("content"), {"role": message["role"], "tool_calls": message["tool_calls"]}
        if content and not self.with_text:
            before = {name: value for name, value in message.items() if name != "tool_calls"}
            return [before, {**calls, **self.empty[None]}]
        thoughts = {name: message[name] for name in REASONING_FIELDS if name in message}
        if content and thoughts and not self.with_both:
            message = {**message, **{name: f"{thought}{_BETWEEN}{content}" for name, thought in thoughts.items()}}
            content = None
        if content:
            return [message]
        rest = {name: value for name, value in message.items() if name != "content"}
        return [{**rest, **self.empty[content]}]


def manners_of(render: Render) -> CallManners:
    """What a template takes, tried out. Where it shows no calls whatever it is given, messages stay as they are."""
    needed = {name: _NOTHING[name] for name in _NOTHING if not _renders_tool(render, name) and _renders_tool(render)}
    absent: Message = {}
    null: Message = {"content": None}
    text: Message = {"content": ""}
    empty: dict[str | None, Message] = {}
    for sent, choices in ((None, (absent, null, text)), ("", (text, absent, null))):
        empty[sent] = max(choices, key=lambda members: _outcome(render, members))
    said, thought = {"content": "Let me see."}, {"reasoning_content": "Hm.", "thinking": "Hm."}

    def shows(members: Message, count: int = 1) -> bool:
        return _outcome(render, members, count) is _Outcome.SHOWN

    if not shows(empty[None]):
        return CallManners(empty=empty, shown=False, needed=needed)
    with_text = shows(said)
    both = not with_text or shows({**said, **thought}) or not shows({**empty[None], **thought})
    return CallManners(
        empty=empty,
        with_text=with_text,
        with_both=both,
        several=shows(empty[None], 2),
        any_text=_outcome(render, empty[None], whole=False) is _Outcome.SHOWN,
        needed=needed,
    )


def with_ids(messages: Sequence[Message], ids: Ids) -> list[Message]:
    """The conversation with such ids of calls as a template takes: others come from models of another family."""
    made: list[Message] = []
    instead: dict[str, str] = {}
    place = 0
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                old = str(call.get("id", ""))
                name = call.get("function", {}).get("name", "")
                instead[old] = old if ids.allowed.fullmatch(old) else ids.instead(old, name, place)
                calls.append({**call, "id": instead[old]})
                place += 1
            message = {**message, "tool_calls": calls}
        elif message.get("tool_call_id") in instead:
            message = {**message, "tool_call_id": instead[message["tool_call_id"]]}
        made.append(message)
    return made


def _with_object(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call whose arguments are an object in any case."""
    function = call.get("function", {})
    text = function.get("arguments")
    return (
        {**call, "function": {**function, "arguments": ArgumentsObject({"arguments": text}, text)}}
        if isinstance(text, str)
        else call
    )


def _renders_tool(render: Render, without: str = "") -> bool:
    function = {name: value for name, value in _PROBE.items() if name != without}
    try:
        render([{"role": "user", "content": "?"}], [{"type": "function", "function": function}])
    except Exception:  # a template is a program: it may fail in any way
        return False
    return True


class _Outcome(IntEnum):
    FAILS = auto()
    RENDERED = auto()
    SHOWN = auto()
    """The calls can be seen in the prompt."""


def _outcome(render: Render, members: Message, count: int = 1, *, whole: bool = True) -> _Outcome:
    """What comes of calls in a message with these members; `whole`: whether their arguments are those of an object."""
    marks = [f"value-{place}-of-a-probe" for place in range(count)]
    calls = [_call(f"probe000{place}", mark, whole) for place, mark in enumerate(marks)]
    results = [{"role": "tool", "tool_call_id": call["id"], "name": "probe", "content": "{}"} for call in calls]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", **members, "tool_calls": calls}, *results]
    try:
        shown = render(messages, [{"type": "function", "function": _PROBE}])
    except Exception:  # a template is a program: it may fail in any way
        return _Outcome.FAILS
    return _Outcome.SHOWN if all(mark in shown for mark in marks) else _Outcome.RENDERED


def _call(identity: str, value: str, whole: bool) -> dict[str, Any]:
    function = {"name": "probe", "arguments": arguments_of(json.dumps({"a": value})[: None if whole else -1])}
    return {"id": identity, "type": "function", "function": function}


def _written(message: Message, write: Write) -> Message:
    functions = [call.get("function", {}) for call in message["tool_calls"]]
    written = write([(function.get("name", ""), function.get("arguments", {})) for function in functions])
    return message if written is None else {**message, "content": (message.get("content") or "") + written}


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    """Each of several calls in a message of its own, its results behind it."""
    made: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        calls = message.get("tool_calls") or ()
        place += 1
        if len(calls) < 2:
            made.append(message)
            continue
        begin = place
        while place < len(messages) and messages[place].get("role") == "tool":
            place += 1
        results = list(messages[begin:place])
        for number, call in enumerate(calls):
            before = message if number == 0 else {"role": message["role"]}
            made.append({**before, "tool_calls": [call]})
            made += [result for result in results if result.get("tool_call_id") == call.get("id")]
        known = {call.get("id") for call in calls}
        made += [result for result in results if result.get("tool_call_id") not in known]
    return made
