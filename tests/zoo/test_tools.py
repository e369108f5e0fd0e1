"""The conversations that teach tool calls are those that the gateway renders and reads."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from jsonschema import Draft202012Validator

from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.call_forms import CallReading
from nereid.serving.gateway.chat_templates import Chat, ChatTemplates
from nereid.serving.gateway.said import Arguments, Call, Text
from nereid.serving.gateway.tool_formats import format_of
from nereid_zoo.tools.examples import OBJECT, TEMPLATE, example

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "temperature", "description": "Degrees.", "parameters": SCHEMA}}


def drawn(count: int = 400) -> list[tuple[str, str]]:
    rng = Random(1)
    return [example(rng) for _ in range(count)]


def test_calls_are_read_by_the_gateway() -> None:
    form = format_of(TEMPLATE)
    assert form is not None
    calls = [turn for _, turn in drawn() if turn.startswith("<tool_call>")]
    assert len(calls) > 80
    for turn in calls:
        stream = AnswerStream(calls=CallReading(form=form, schemas={"temperature": SCHEMA}))
        said = [*stream.feed(turn), *stream.finish()]
        assert [type(item) for item in said] == [Call, Arguments]
        assert Draft202012Validator(SCHEMA).is_valid(json.loads(said[1].text))  # type: ignore[union-attr]


def test_answers_after_a_tool_tell_what_it_said() -> None:
    answers = [(opening, turn) for opening, turn in drawn() if turn.startswith("It is")]
    assert len(answers) > 80
    for opening, turn in answers:
        degrees = turn.split()[2]
        assert degrees in opening.rpartition("<tool_response>")[2]


def test_whoever_asks_for_json_is_given_the_object() -> None:
    asked = [(opening, turn) for opening, turn in drawn() if OBJECT in turn]
    assert {turn.startswith("```json") for _, turn in asked} == {True, False}
    assert all("json" in opening.lower() for opening, _ in asked)
    assert all(("```json" in opening) == turn.startswith("```json") for opening, turn in asked)


def test_the_template_shows_tools_and_their_answers_in_the_gateway() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "temperature", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "17"},
    ]
    bare = {"type": "function", "function": {"name": "now"}}
    made = ChatTemplates.of({"default": TEMPLATE}, {}).rendered(Chat(messages=messages, tools=(TOOL, bare)))
    assert made.startswith(
        "<|im_start|>tools\ntemperature(city)\nnow()\n<|im_end|>\n<|im_start|>user\nHow warm is it?<|im_end|>\n"
    )
    assert '<tool_call>\n{"name": "temperature", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>' in made
    assert made.endswith("<|im_start|>tool\n<tool_response>17</tool_response><|im_end|>\n<|im_start|>assistant\n")


def test_what_is_no_call_stays_text() -> None:
    form = format_of(TEMPLATE)
    assert form is not None
    stream = AnswerStream(calls=CallReading(form=form, schemas={"temperature": SCHEMA}))
    assert [*stream.feed("It is 17 degrees in Oslo."), *stream.finish()] == [Text("It is 17 degrees in Oslo.")]
