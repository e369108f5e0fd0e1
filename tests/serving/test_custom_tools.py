"""Custom tools, which are called with a text: in chats and responses, as OpenAI's package sends and reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from llguidance import LLMatcher, LLTokenizer

from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.call_forms import CallReading
from nereid.serving.gateway.chat_answers import message_of
from nereid.serving.gateway.custom_inputs import CustomInputs, InputText, parameters_of
from nereid.serving.gateway.said import Arguments, Call, Input, Text
from nereid.serving.gateway.tool_formats import TOOL_FORMATS
from nereid.serving.gateway.tool_grammars import AnswerForm

from calling_answers import ANSWERS
from calling_model import ASK, CHAT, WARMTH, Model, chat, hermes
from gateway_before import client_of

SCRIPT = 'print("Łódź")\n'
ANSWER = f"Well. <tool_call>\n{json.dumps({'name': 'python', 'arguments': {'input': SCRIPT}})}\n</tool_call>"
PYTHON: dict[str, Any] = {"name": "python", "description": "runs a script"}
DATE: dict[str, Any] = {
    "name": "date",
    "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": r"\d{4}-\d\d"}},
}
TOOLS: list[Any] = [{"type": "custom", "custom": PYTHON}, WARMTH]
FLAT: list[Any] = [{"type": "custom", **PYTHON}, {"type": "function", **WARMTH["function"]}]  # type: ignore[dict-item]
BAD_PATTERNS = [
    ("[", "not allowed; it must be a regular expression that text can be bound to: unclosed character class"),
    ("(?=a)b", "not allowed; it must be a regular expression that text can be bound to: look-around"),
    ("a)(b", "not allowed; it must be a regular expression that text can be bound to: unopened group"),
    ("(?x) a # c", "not allowed; it must be a regular expression that text can be bound to: unclosed group"),
]
LARK = {"syntax": "lark", "definition": "start: /a/"}
RESPONSES = "/v1/responses"


def bound(pattern: str) -> dict[str, Any]:
    grammar = {"syntax": "regex", "definition": pattern}
    return {"type": "custom", "custom": {"name": "date", "format": {"type": "grammar", "grammar": grammar}}}


@pytest.fixture
def model() -> Model:
    return Model(ANSWER)


def flat_bound(pattern: str) -> dict[str, Any]:
    return {"type": "custom", "name": "a", "format": {"type": "grammar", "syntax": "regex", "definition": pattern}}


@pytest.fixture
def api(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    with hermes(tmp_path, triton) as client:
        yield client


@pytest.fixture
def client(api: httpx.Client) -> openai.OpenAI:
    return client_of(api)


def chunks_of(api: httpx.Client, **more: Any) -> list[dict[str, Any]]:
    lines = api.post(CHAT, json={**ASK, **more, "stream": True}).text.splitlines()
    return [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]


# --- chats ---


def test_a_custom_tool_is_a_function_of_one_text_to_the_model_and_its_call_has_an_input(
    client: openai.OpenAI, model: Model
) -> None:
    (choice,) = client.chat.completions.create(**ASK, tools=TOOLS).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Well.")
    (call,) = choice.message.tool_calls or []
    assert call.type == "custom"
    assert (call.custom.name, call.custom.input) == ("python", SCRIPT)
    assert '"name": "python"' in model.prompts[-1]
    assert '"properties": {"input": {"type": "string"}}' in model.prompts[-1]


def test_calls_of_functions_stay_what_they_are_beside_it(api: httpx.Client, model: Model) -> None:
    model.answer = ANSWER + '\n<tool_call>\n{"name": "warmth", "arguments": {"city": "Rome"}}\n</tool_call>'
    first, second = chat(api, tools=TOOLS)["choices"][0]["message"]["tool_calls"]
    assert first["custom"] == {"name": "python", "input": SCRIPT}
    assert (second["type"], second["function"]) == ("function", {"name": "warmth", "arguments": '{"city": "Rome"}'})


def test_an_input_is_streamed_as_text(api: httpx.Client) -> None:
    choices = chunks_of(api, tools=TOOLS)
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert (calls[0]["type"], calls[0]["custom"]) == ("custom", {"name": "python", "input": ""})
    assert all(call.keys() == {"index", "custom"} for call in calls[1:])
    pieces = [call["custom"]["input"] for call in calls]
    assert "".join(pieces) == SCRIPT
    assert len(pieces) > 10
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_earlier_calls_stand_in_the_prompt_as_the_model_writes_them(api: httpx.Client, model: Model) -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "python", "input": SCRIPT}}
    history = [
        *ASK["messages"],
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]
    chat(api, messages=history, tools=TOOLS)
    written = {"name": "python", "arguments": {"input": SCRIPT}}
    assert json.dumps(written, ensure_ascii=False) in model.prompts[-1]
    assert "<tool_response>\nx\n</tool_response>" in model.prompts[-1]


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "custom", "custom": {"name": "python"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "custom", "custom": {"name": "python"}}]},
        },
    ],
    ids=["named", "allowed"],
)
def test_it_may_be_the_one_that_must_be_called(api: httpx.Client, model: Model, choice: dict[str, Any]) -> None:
    chat(api, tools=TOOLS, tool_choice=choice)
    grammar = model.asked[-1]["structured_outputs"]["grammar"]
    assert '"properties": {"input": {"type": "string"}}' in grammar
    assert "warmth" not in grammar
    assert "warmth" not in model.prompts[-1]


def test_a_regular_expression_binds_the_input_also_where_text_is_allowed(api: httpx.Client, model: Model) -> None:
    chat(api, tools=[{"type": "custom", "custom": DATE}])
    grammar = model.asked[-1]["structured_outputs"]["grammar"]
    assert "tail" in grammar, "text may stand beside"
    chat(api, tools=[{"type": "custom", "custom": DATE}], tool_choice="required")
    bound = model.asked[-1]["structured_outputs"]["grammar"]
    for text, fits in (("2024-05", True), ("x2024-05", False), ("2024-5", False)):
        call = json.dumps({"name": "date", "arguments": {"input": text}})
        assert obeys(bound, f"<tool_call>\n{call}\n</tool_call>") is fits
    chat(api, tools=TOOLS)
    assert "structured_outputs" not in model.asked[-1], "any text needs no grammar"


def obeys(grammar: str, text: str) -> bool:
    """Whether llguidance takes all of the text, byte by byte."""
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return bool(matcher.validate_tokens(tokens) == len(tokens))


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "a b"}}]}, "tools.0.custom.name", "'a b' is not allowed"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0.custom.name", "it is missing"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools.2.custom.name", "another name"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "a", "format": {"type": "grammar", "grammar": LARK}}}]},
            "tools.0.custom.format.grammar.syntax",
            "'lark' is not allowed; it must be 'regex'",
        ),
        *(
            (
                {"tools": [WARMTH, bound(pattern)]},
                "tools.1.custom.format.grammar.definition",
                f"{pattern!r} is {why}",
            )
            for pattern, why in BAD_PATTERNS
        ),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "must be 'function' or 'custom'"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice.custom.name", "one of tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "x"}]}]}, "messages.0.tool_calls.0.type", "'x'"),
    ],
)
def test_what_a_custom_tool_cannot_be_is_refused_by_name(
    api: httpx.Client, model: Model, more: dict[str, Any], param: str, words: str
) -> None:
    answer = api.post(CHAT, json={**ASK, **more})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert model.asked == []


STRICT_PATHS = [
    ({"properties": {"city": {"type": "string", "pattern": "["}}}, "properties.city.pattern"),
    ({"patternProperties": {"[": {}}}, "patternProperties"),
    ({"properties": {"all": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"pattern": "["}]}}}},
     "properties.all.items.anyOf.1.pattern"),
    ({"properties": {"city": {"$ref": "#/$defs/city"}}, "$defs": {"city": {"type": "string", "pattern": "["}}},
     "$defs.city.pattern"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "path"), STRICT_PATHS)
def test_a_functions_regular_expression_that_binds_nothing_is_named_where_it_is_bound(
    api: httpx.Client, model: Model, schema: dict[str, Any], path: str
) -> None:
    tool = {"type": "function", "function": {"name": "look", "strict": True, "parameters": {"type": "object", **schema}}}
    for url, sent, param in (
        (CHAT, {**ASK, "tools": [TOOLS[0], tool]}, f"tools.1.function.parameters.{path}"),
        (CHAT, {**ASK, "tools": [tool | {"function": tool["function"] | {"strict": False}}], "tool_choice": "required"},
         f"tools.0.function.parameters.{path}"),
        (RESPONSES, {"model": "llm", "input": "x", "tools": [{"type": "function", **tool["function"]}]},
         f"tools.0.parameters.{path}"),
        (CHAT, {**ASK, "functions": [tool["function"] | {"strict": None}], "function_call": {"name": "look"}},
         f"functions.0.parameters.{path}"),
    ):  # fmt: skip
        answer = api.post(url, json=sent)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert error["message"] == f"{param}: '[' is not allowed; it must be a regular expression that text can be bound to: " + (
            "unclosed character class"
        )
    assert model.asked == []


def test_regular_expressions_that_bind_nothing_here_are_nobodys_business(api: httpx.Client, model: Model) -> None:
    schemas = (
        {"properties": {"city": {"type": "string"}}, "$defs": {"other": {"pattern": "["}}},
        {"properties": {"city": {"type": "integer", "pattern": "["}}},
        {"properties": {"city": {"default": {"pattern": "["}}}},
    )
    for schema in schemas:
        tool = {"type": "function", "function": {"name": "look", "strict": True, "parameters": {"type": "object", **schema}}}
        chat(api, tools=[tool])
    free = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"city": {"pattern": "["}}}}}
    chat(api, tools=[free])
    assert "structured_outputs" not in model.asked[-1]


# --- responses ---


def test_responses_have_items_and_events_of_custom_tools(client: openai.OpenAI, model: Model) -> None:
    with client.responses.stream(model="llm", input="How warm?", tools=FLAT) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "custom_tool_call"]
    call = final.output[1]
    assert (call.name, call.input) == ("python", SCRIPT)  # type: ignore[union-attr]
    assert call.call_id  # type: ignore[union-attr]
    pieces: list[Any] = [event for event in events if event.type == "response.custom_tool_call_input.delta"]
    assert "".join(event.delta for event in pieces) == SCRIPT
    assert {event.item_id for event in pieces} == {call.id}
    (done,) = [event for event in events if event.type == "response.custom_tool_call_input.done"]
    assert done.input == SCRIPT
    assert final.tools[0].type == "custom"
    whole = client.responses.create(model="llm", input="How warm?", tools=FLAT)
    assert whole.output[1].input == SCRIPT  # type: ignore[union-attr]


def test_an_agents_loop_closes_over_custom_tools(client: openai.OpenAI, model: Model) -> None:
    first = client.responses.create(model="llm", input="How warm?", tools=FLAT)
    call = first.output[-1]
    assert call.type == "custom_tool_call"
    result: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "20"}
    model.answer = "Warm."
    for sent in (
        {"input": [{"role": "user", "content": "How warm?"}, *first.output, result]},
        {"input": [result], "previous_response_id": first.id},
    ):
        second = client.responses.create(model="llm", tools=FLAT, **sent)  # type: ignore[call-overload]
        assert second.output_text == "Warm."
        written = json.dumps({"name": "python", "arguments": {"input": SCRIPT}}, ensure_ascii=False)
        assert written in model.prompts[-1]
        assert "<tool_response>\n20\n</tool_response>" in model.prompts[-1]
    assert model.prompts[-1] == model.prompts[-2]


def test_responses_name_what_is_wrong_of_custom_tools_as_it_was_sent(api: httpx.Client, model: Model) -> None:
    lark = {"type": "custom", "name": "a", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}}
    stray = {"type": "custom_tool_call_output", "call_id": "c", "output": "x"}
    call = {"type": "function_call", "call_id": "c", "name": "warmth", "arguments": "{}"}
    for more, param, words in (
        ({"tools": [lark]}, "tools.0.format.syntax", "'lark' is not allowed; it must be 'regex'"),
        ({"tools": [{"type": "custom", "name": "a b"}]}, "tools.0.name", "'a b' is not allowed"),
        ({"tools": [flat_bound("[")]}, "tools.0.format.definition", "'[' is not allowed; it must be a regular expression"),
        ({"tools": FLAT, "tool_choice": {"type": "custom", "name": "x"}}, "tool_choice.name", "one of tools"),
        ({"input": [call, stray]}, "input.1.call_id", "'c' is not allowed; it must be that of a custom_tool_call before it"),
    ):
        answer = api.post(RESPONSES, json={"model": "llm", "input": "x", **more})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert words in error["message"]
    assert model.asked == []
    named = {"tools": FLAT, "tool_choice": {"type": "custom", "name": "python"}}
    assert api.post(RESPONSES, json={"model": "llm", "input": "x", **named}).status_code == 200
    assert "warmth" not in model.prompts[-1]
    date = {"type": "custom", "name": "date", "format": {"type": "grammar", **DATE["format"]["grammar"]}}
    assert api.post(RESPONSES, json={"model": "llm", "input": "x", "tools": [date]}).status_code == 200
    assert "2024" not in model.prompts[-1]
    assert "pattern" in model.asked[-1]["structured_outputs"]["grammar"]


# --- the input's text ---


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('{"input": "a\\n\\"b\\"\\u0142 \\ud83d\\ude00!"}', 'a\n"b"ł 😀!'),
        ('{ "input" : "" }', ""),
        ('{"input": "raw\nline\\q \\\\"}', "raw\nline\\q \\"),
        ('{"input": "half \\ud83d"}', "half \ufffd"),
        ('{"input": "half \\ud83dx \\ude00"}', "half \ufffdx \ufffd"),
        ('{"input": "\\\\ud83d"}', "\\ud83d"),
        ('{"input": "cut sho', "cut sho"),
        ('{"input": "cut \\u00', "cut "),
        ('{"input": "cut \\ud83d', "cut \ufffd"),
        ('{"code": "x = 1\\n"}', "x = 1\n"),
        ('{"input": {"x": 1}}', '{"input": {"x": 1}}'),
        ('{"a": "b", "c": "d"}', '{"a": "b", "c": "d"}'),
        ("no JSON", "no JSON"),
        ("{}", "{}"),
        ('{"input": "a", "more": "b"}', "a"),
    ],
)
def test_an_input_is_the_same_however_its_arguments_are_cut(written: str, told: str) -> None:
    for size in (1, 2, 3, 5, 1000):
        text = InputText()
        pieces = [text.feed(written[place : place + size]) for place in range(0, len(written), size)]
        assert "".join(pieces) + text.finish() == told
        "".join(pieces).encode()


def test_what_is_held_of_an_input_is_told_before_what_comes_after_it() -> None:
    inputs = CustomInputs(frozenset({"python"}))
    said = inputs.told(
        [Call(0, "a", "python"), Arguments(0, '{"code": "x"}'), Text("Well."), Call(1, "b", "now"), Arguments(1, "{}")]
    )
    assert said == [Call(0, "a", "python", True), Input(0, "x"), Text("Well."), Call(1, "b", "now"), Arguments(1, "{}")]
    assert inputs.told([Call(2, "c", "python"), Arguments(2, "no JSON")]) == [Call(2, "c", "python", True)]
    assert inputs.finish() == [Input(2, "no JSON")]


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_every_form_of_calls_has_inputs_and_binds_them(form: str) -> None:
    text = ANSWERS[form].replace("city", "input")
    reading = CallReading(
        form=TOOL_FORMATS[form], schemas={"warmth": parameters_of(None), "now": {}}, custom=frozenset({"warmth"})
    )
    for size in (1, 7, len(text)):
        stream = AnswerStream(None, reading)
        said = [item for at in range(0, len(text), size) for item in stream.feed(text[at : at + size])]
        first, second = message_of([*said, *stream.finish()])["tool_calls"]
        assert first["custom"] == {"name": "warmth", "input": 'Łó"dź } ]'}
        assert second["type"] == "function"
    bound = CallReading(form=TOOL_FORMATS[form], schemas={"date": parameters_of(r"\d{4}-\d\d")}, custom=frozenset({"date"}))
    grammar = LLMatcher.grammar_from_lark(AnswerForm(calls=bound, called=True).grammar())
    assert not LLMatcher(LLTokenizer("byte"), grammar).get_error()
