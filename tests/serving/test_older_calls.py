"""OpenAI's older form of tools, as LangChain's and others' older releases send and read it: functions and function_call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from calling_model import ASK, CHAT, CITY, NOW, WARMTH, Model, chat, hermes, refused
from gateway_before import client_of

ANSWER = 'Well. <tool_call>\n{"name": "warmth", "arguments": {"city": "Łódź"}}\n</tool_call>'
ARGUMENTS = '{"city": "Łódź"}'
FUNCTIONS: list[Any] = [WARMTH["function"], NOW["function"]]
CALLED = {"role": "assistant", "content": None, "function_call": {"name": "warmth", "arguments": ARGUMENTS}}
RESULT = {"role": "function", "name": "warmth", "content": "20"}


@pytest.fixture
def model() -> Model:
    return Model(ANSWER)


@pytest.fixture
def api(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    with hermes(tmp_path, triton) as client:
        yield client


def test_functions_are_tools_to_the_model_and_its_call_is_told_in_their_form(api: httpx.Client, model: Model) -> None:
    client = client_of(api)
    made = client.chat.completions.create(**ASK, functions=FUNCTIONS)
    (choice,) = made.choices
    assert choice.finish_reason == "function_call"
    assert choice.message.content == "Well."
    assert choice.message.function_call is not None
    assert (choice.message.function_call.name, choice.message.function_call.arguments) == ("warmth", ARGUMENTS)
    assert choice.message.tool_calls is None
    chat(api, tools=[WARMTH, NOW])
    assert model.prompts[0] == model.prompts[1], "the template is shown the same"


def test_one_call_is_told_and_streamed_in_pieces_under_one_name(api: httpx.Client, model: Model) -> None:
    model.answer = ANSWER + ANSWER.removeprefix("Well. ")
    assert chat(api, functions=FUNCTIONS)["choices"][0]["message"]["function_call"] == {"name": "warmth", "arguments": ARGUMENTS}
    lines = api.post(CHAT, json={**ASK, "functions": FUNCTIONS, "stream": True}).text.splitlines()
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    calls = [choice["delta"]["function_call"] for choice in choices if "function_call" in choice["delta"]]
    assert calls[0] == {"name": "warmth", "arguments": ""}
    assert not any("name" in call for call in calls[1:])
    assert "".join(call["arguments"] for call in calls) == ARGUMENTS
    assert choices[-1]["finish_reason"] == "function_call"
    assert not any("tool_calls" in choice["delta"] for choice in choices)


def test_a_function_may_be_named_or_none_be_called(api: httpx.Client, model: Model) -> None:
    (choice,) = chat(api, functions=FUNCTIONS, function_call={"name": "warmth"})["choices"]
    assert choice["message"]["function_call"]["name"] == "warmth"
    assert '"properties": {"city": {"type": "string"}}' in model.asked[-1]["structured_outputs"]["grammar"]
    assert '"name": "now"' not in model.prompts[-1]
    for more in ({"functions": FUNCTIONS, "function_call": "none"}, {"functions": []}, {"function_call": "auto"}, {}):
        (choice,) = chat(api, **more)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
        assert "<tools>" not in model.prompts[-1]
    (choice,) = chat(api, functions=FUNCTIONS, function_call="auto", tools=[])["choices"]
    assert choice["finish_reason"] == "function_call"


def test_an_answer_without_a_call_ends_as_any_other(api: httpx.Client, model: Model) -> None:
    model.answer = "Warm."
    (choice,) = chat(api, functions=FUNCTIONS)["choices"]
    assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": "Warm."}, "stop")
    model.answer, model.reason = ANSWER[:50], "length"
    assert chat(api, functions=FUNCTIONS)["choices"][0]["finish_reason"] == "length"


def test_calls_and_results_of_functions_stand_in_the_prompt_as_those_of_tools(api: httpx.Client, model: Model) -> None:
    """Also several in turn, and where the caller has no functions any more."""
    turns = [*ASK["messages"], CALLED, RESULT, CALLED, {**RESULT, "content": None}]
    chat(api, messages=turns, functions=FUNCTIONS)
    todays: list[dict[str, Any]] = list(ASK["messages"])
    for place, said in ((1, "20"), (3, "")):
        call = {"id": f"c{place}", "type": "function", "function": CALLED["function_call"]}
        todays.append({"role": "assistant", "content": None, "tool_calls": [call]})
        todays.append({"role": "tool", "tool_call_id": f"c{place}", "name": "warmth", "content": said})
    chat(api, messages=todays, tools=[WARMTH, NOW])
    assert model.prompts[0] == model.prompts[1]
    assert '{"name": "warmth", "arguments": {"city": "Łódź"}}' in model.prompts[0]
    chat(api, messages=[*ASK["messages"], CALLED, RESULT])
    told = api.post("/tokenize", json={"model": "llm", "messages": [*ASK["messages"], CALLED, {**RESULT, "name": "now"}]})
    assert told.json()["error"]["param"] == "messages.2.name"


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"functions": FUNCTIONS, "tools": [WARMTH]}, "tools", "not allowed with functions"),
        ({"functions": FUNCTIONS, "tool_choice": "required"}, "tool_choice", "not allowed with functions"),
        ({"function_call": {"name": "warmth"}}, "function_call", "not allowed without functions"),
        ({"tools": [WARMTH], "function_call": "none"}, "function_call", "not allowed without functions"),
        ({"functions": FUNCTIONS, "function_call": {"name": "x"}}, "function_call.name", "one of functions: warmth, now"),
        ({"functions": FUNCTIONS, "function_call": "required"}, "function_call", "'none' or 'auto'"),
        ({"functions": [{"name": "a b"}]}, "functions.0.name", "'a b' is not allowed"),
        ({"functions": [{"name": "a"}, {"name": "a"}]}, "functions.1.name", "another name"),
        (
            {"functions": [{"name": "a", "parameters": {"type": "array"}}]},
            "functions.0.parameters.type",
            "it must be object",
        ),
        ({"functions": [{"name": "a"}] * 129}, "functions", "at most 128 items"),
        ({"functions": FUNCTIONS, "structured_outputs": {"regex": "a"}}, "structured_outputs", "not allowed with functions"),
        ({"messages": [*ASK["messages"], RESULT]}, "messages.1.name", "the name of a function_call in an assistant's message"),
        ({"messages": [*ASK["messages"], CALLED, {"role": "function", "content": "x"}]}, "messages.2.name", "it is missing"),
        ({"messages": [{**CALLED, "role": "user", "content": "x"}]}, "messages.0.function_call", "only an assistant's message"),
    ],
)
def test_what_functions_cannot_say_is_refused_in_their_names(
    api: httpx.Client, model: Model, more: dict[str, Any], param: str, words: str
) -> None:
    found, message = refused(api, **more)
    assert found == param
    assert words in message
    assert "tools." not in message
    assert model.asked == []


def test_a_schema_that_cannot_be_bound_is_named_by_its_place(api: httpx.Client, model: Model) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    functions = [{"name": "a", "parameters": CITY}, {"name": "b", "parameters": parameters}]
    found, message = refused(api, functions=functions, function_call={"name": "b"})
    assert (found, message) == ("functions.1.parameters", "functions.1.parameters: properties.x.uniqueItems cannot be bound")
    assert model.asked == []
