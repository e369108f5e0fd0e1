"""Tools and thoughts in chats, as clients send and read them: OpenAI's package before the gateway and a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nereid.serving.errors import ServingError
from nereid.serving.gateway.launch import Launch, Rules, tool_formats_of
from nereid.serving.gateway.repository import offered_models
from nereid.serving.gateway.thoughts import Thinking
from nereid.serving.gateway.tool_formats import TOOL_FORMATS

from calling_model import ASK, CHAT, CITY, NOW, WARMTH, Model, chat, refused, write
from gateway_before import client_of, gateway
from small_servers import Tensors, grpc_server
from template_families import FAMILIES, deepseek

ANSWER = 'Well. <tool_call>\n{"name": "warmth", "arguments": {"city": "Łódź"}}\n</tool_call>'
THOUGHT = "<think>\nHm.\n</think>\n\n"
THINKS = FAMILIES["hermes"] + "{# </think> #}"


@pytest.fixture
def model() -> Model:
    return Model(ANSWER)


@pytest.fixture
def api(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    with gateway(write(tmp_path, THINKS), triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


# --- calls ---


def test_calls_are_told_and_the_answer_waits_for_them(api: httpx.Client, model: Model) -> None:
    (choice,) = chat(api, tools=[WARMTH])["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Well."
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "warmth", "arguments": '{"city": "Łódź"}'})
    assert '"name": "warmth"' in model.prompts[-1]
    assert "structured_outputs" not in model.asked[-1]


def test_calls_are_streamed_as_openais_package_adds_them_up(api: httpx.Client, model: Model) -> None:
    model.answer = THOUGHT + ANSWER + "\n" + ANSWER.removeprefix("Well. ").replace("Łódź", "Rome")
    with client_of(api).chat.completions.stream(**ASK, tools=[WARMTH, NOW]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    (choice,) = final.choices
    found = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]
    assert found == [("warmth", {"city": "Łódź"}), ("warmth", {"city": "Rome"})]
    assert (choice.message.content, choice.finish_reason) == ("Well.", "tool_calls")
    assert choice.message.reasoning_content == "Hm."  # type: ignore[attr-defined]
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert kinds.count("tool_calls.function.arguments.delta") > 10


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (ANSWER.removeprefix("Well. "), None),
        (THOUGHT + ANSWER.removeprefix("Well. "), None),
        (ANSWER, "Well."),
        ("Well.", "Well."),
        (THOUGHT, ""),
        (" ", " "),
    ],
)
def test_a_stream_s_content_is_the_whole_answer_s(api: httpx.Client, model: Model, answer: str, content: str | None) -> None:
    """Null where there are only calls: some clients would show an empty text before them."""
    model.answer = answer
    assert chat(api, tools=[WARMTH])["choices"][0]["message"]["content"] == content
    lines = api.post(CHAT, json={**ASK, "tools": [WARMTH], "stream": True}).text.splitlines()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    told = [part["content"] for part in deltas if part.get("content") is not None]
    assert ("".join(told) if told else None) == content
    assert deltas[0] == {"role": "assistant", "content": None}
    with client_of(api).chat.completions.stream(**ASK, tools=[WARMTH]) as stream:
        assert stream.get_final_completion().choices[0].message.content == content


def test_a_call_s_name_comes_before_its_arguments_and_only_once(api: httpx.Client) -> None:
    lines = api.post(CHAT, json={**ASK, "tools": [WARMTH], "stream": True, "n": 2}).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    for index in (0, 1):
        deltas = [c["delta"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        calls = [item for part in deltas for item in part.get("tool_calls", [])]
        assert calls[0]["id"]
        assert calls[0]["function"] == {"name": "warmth", "arguments": ""}
        assert not any("id" in call or "name" in call["function"] for call in calls[1:])
        assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Łódź"}'
        reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert reasons[-1] == "tool_calls"


def test_a_call_that_was_cut_is_told_as_cut(api: httpx.Client, model: Model) -> None:
    model.answer, model.reason = ANSWER[:50], "length"
    (choice,) = chat(api, tools=[WARMTH])["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "warmth"


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "function": {"name": "warmth"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "warmth"}}]},
        },
    ],
    ids=["required", "named", "allowed"],
)
def test_an_answer_that_must_call_is_bound_to_the_schemas(api: httpx.Client, model: Model, choice: Any) -> None:
    chat(api, tools=[WARMTH, NOW], tool_choice=choice, parallel_tool_calls=False)
    grammar = model.asked[-1]["structured_outputs"]["grammar"]
    assert '"properties": {"city": {"type": "string"}}' in grammar
    assert ("now" in grammar) is (choice == "required")
    assert ('"name": "now"' in model.prompts[-1]) is (choice == "required")


def test_strict_tools_bind_calls_where_text_is_allowed_too(api: httpx.Client, model: Model) -> None:
    strict = {"type": "function", "function": {**WARMTH["function"], "strict": True}}  # type: ignore[dict-item]
    chat(api, tools=[strict])
    assert "tail" in model.asked[-1]["structured_outputs"]["grammar"]
    assert "strict" not in model.prompts[-1]


def test_a_schema_of_the_answer_stands_beside_calls(api: httpx.Client, model: Model) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": CITY}}
    chat(api, tools=[NOW], response_format=form)
    assert "(json | calls)" in model.asked[-1]["structured_outputs"]["grammar"]


def test_nothing_is_called_where_that_is_not_wanted(api: httpx.Client, model: Model) -> None:
    for more in ({"tool_choice": "none"}, {"tools": []}):
        (choice,) = chat(api, **{"tools": [WARMTH], **more})["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
        assert "<tools>" not in model.prompts[-1]


def test_only_one_call_is_told_where_there_are_not_to_be_several(api: httpx.Client, model: Model) -> None:
    model.answer = ANSWER + ANSWER
    assert len(chat(api, tools=[WARMTH])["choices"][0]["message"]["tool_calls"]) == 2
    assert len(chat(api, tools=[WARMTH], parallel_tool_calls=False)["choices"][0]["message"]["tool_calls"]) == 1


def test_what_was_called_goes_back_to_the_template_as_objects(api: httpx.Client, model: Model) -> None:
    client = client_of(api)
    first = client.chat.completions.create(**ASK, tools=[WARMTH])
    message = first.choices[0].message
    assert message.tool_calls is not None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": [{"type": "text", "text": "20"}]}
    for sent in (message, {**message.model_dump(), "content": None}):
        client.chat.completions.create(model="llm", messages=[*ASK["messages"], sent, result], tools=[WARMTH])
        assert '{"name": "warmth", "arguments": {"city": "Łódź"}}' in model.prompts[-1]
        assert "<tool_response>\n20\n</tool_response>" in model.prompts[-1]


def tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **more}}


MANY: dict[str, Any] = {"properties": {f"p{i}": {} for i in range(7600)}}
MANY["title"] = "x" * (99_980 - len(json.dumps(MANY)))
DEEPEST: dict[str, Any] = {"type": ["string"]}
for _ in range(31):
    DEEPEST = {"properties": {"a": DEEPEST}}
DEEP = {"properties": DEEPEST}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "it must be 'function'"),
        ({"tools": [tool(name="no name")]}, "tools.0.function.name", "it must be 1 to 64 of"),
        ({"tools": [tool(), tool()]}, "tools.1.function.name", "there is a tool of this one"),
        ({"tools": [tool(parameters=3)]}, "tools.0.function.parameters", "it must be an object"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools.0.function.parameters.type", "it must be object"),
        (
            {"tools": [tool(parameters={"properties": {"a": {"type": "strng"}}})]},
            "tools.0.function.parameters.properties.a.type",
            "",
        ),
        (
            {"tools": [tool(parameters={"properties": {"a": {"type": [{"a": i} for i in range(8)]}}})]},
            "tools.0.function.parameters.properties.a.type",
            "at most 7",
        ),
        ({"tools": [tool(parameters={"properties": 3})]}, "tools.0.function.parameters.properties", "no JSON schema"),
        ({"tools": [tool(parameter={})]}, "tools.0.function.parameter", "not supported"),
        ({"tools": [tool(name=f"f{i}") for i in range(129)]}, "tools", "it must be at most 128 items"),
        ({"tools": [tool(parameters=MANY)], "tool_choice": "required"}, "tools", "it must have at most 100000 characters"),
        ({"tools": [tool(parameters=MANY), tool(name="g", parameters={"title": "x"})]}, "tools", "too long"),
        ({"tools": [tool(parameters=DEEP)]}, "tools.0.function.parameters", "nested too deeply"),
        ({"tools": [tool()], "tool_choice": "always"}, "tool_choice", ""),
        ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice.function.name", "'g'"),
        ({"tool_choice": "required"}, "tool_choice", "without tools"),
        ({"tools": [tool()], "structured_outputs": {"regex": "a"}}, "structured_outputs", "with tools"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "it is missing"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages.0.tool_call_id", "before it"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages.0.tool_calls", "assistant"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages.0.tool_call_id", "tool's message"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "it is missing"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_tools_and_messages_that_mean_nothing_are_refused_by_name(
    api: httpx.Client, more: dict[str, Any], param: str, words: str
) -> None:
    found, message = refused(api, **more)
    assert found == param
    assert words in message
    assert len(message) < 400


UNBOUND = [r"^[^]$", "a{99999999999}", "(" * 4900 + "a" + ")" * 4900]


@pytest.mark.parametrize(
    "expression", [r"^\p{L}+$", r"^(?<year>[0-9]{4})$", r"^\u{1F600}$", *UNBOUND], ids=lambda value: value[:30]
)
def test_an_expression_that_python_does_not_read_is_no_fault_of_a_schema(
    api: httpx.Client, model: Model, expression: str
) -> None:
    """ECMA-262 has others (JSON Schema 2020-12, core, 6.4); whether an answer can be bound to one, what binds it says."""
    model.answer = "Well."
    parameters = {"properties": {"a": {"pattern": expression}}, "patternProperties": {expression: {}}}
    assert chat(api, tools=[tool(parameters=parameters)])["choices"][0]["message"]["content"] == "Well."
    assert "structured_outputs" not in model.asked[-1]
    if expression not in UNBOUND:
        custom = {"name": "c", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": expression}}}
        chat(api, tools=[tool(parameters=parameters), {"type": "custom", "custom": custom}])
        assert '"pattern"' in model.asked[-1]["structured_outputs"]["grammar"]


def test_a_schema_of_64_levels_is_taken(api: httpx.Client, model: Model) -> None:
    model.answer = "Well."
    assert chat(api, tools=[tool(parameters=DEEPEST)])["choices"][0]["message"]["content"] == "Well."


@pytest.mark.parametrize(
    ("template", "words"), [(FAMILIES["chatml"], "has no place for them"), ("{{ tools }}", "--openai-tools")]
)
def test_a_template_without_calls_is_no_place_for_tools(tmp_path: Path, triton: int, template: str, words: str) -> None:
    with gateway(write(tmp_path, template), triton) as running:
        answer = httpx.post(f"{running.url}{CHAT}", json={**ASK, "tools": [WARMTH]}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert words in answer.json()["error"]["message"]


def test_special_tokens_are_kept_where_calls_are_marked_by_them(tmp_path: Path, triton: int, model: Model) -> None:
    model.answer = '<tool_call>{"name": "now"}'
    for folder, special, kept in (("a", ("<tool_call>",), True), ("b", ("<other>",), False)):
        with gateway(write(tmp_path / folder, THINKS, *special), triton) as running, httpx.Client(base_url=running.url) as client:
            chat(client, tools=[NOW], tool_choice="required")
            assert (model.asked[-1].get("skip_special_tokens") is False) is kept
            assert ("<[10]>" in model.asked[-1]["structured_outputs"]["grammar"]) is kept
            chat(client)
            assert "skip_special_tokens" not in model.asked[-1]


def test_the_operator_says_how_a_model_calls(tmp_path: Path, triton: int, model: Model) -> None:
    model.answer = '[TOOL_CALLS][{"name": "now"}]'
    repository = write(tmp_path, "{{ tools }}")
    for words, found in ((["mistral"], "now"), (["hermes", "llm=mistral"], "now")):
        rules = Rules(tool_formats=tool_formats_of(words))
        with gateway(repository, triton, rules=rules) as running, httpx.Client(base_url=running.url) as client:
            assert chat(client, tools=[NOW])["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == found
    assert offered_models(repository, Rules(tool_formats={"llm": "none"}))["llm"].tool_format is None
    harmony = offered_models(repository, Rules(tool_formats={"": "harmony"}))["llm"]
    assert harmony.tool_format is TOOL_FORMATS["harmony"]
    assert harmony.thinking == Thinking("<|message|>", "<|end|>", channels=True)
    with pytest.raises(ServingError, match="'other' is not a language model"):
        offered_models(repository, Rules(tool_formats={"other": "hermes"}))
    for wrong in (["hermess"], ["llm=hermes", "llm=mistral"]):
        with pytest.raises(ServingError, match="--openai-tools"):
            tool_formats_of(wrong)


def test_the_gateways_process_is_told_all_rules() -> None:
    rules = Rules(tool_formats={"": "hermes"}, reasoning=False, stored_responses=3, stored_megabytes=2)
    launch = Launch(
        repository="r", grpc_url="g", metrics_url="m", ready_url="r", drain_seconds=1.0, listener=3, heart=4, rules=rules
    )
    assert Launch.from_argument(launch.to_argument()) == launch


# --- thoughts ---


def test_thoughts_are_told_apart_unless_that_is_off(tmp_path: Path, api: httpx.Client, triton: int, model: Model) -> None:
    model.answer = f"{THOUGHT}Warm."
    (choice,) = chat(api)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Warm.", "reasoning_content": "Hm.", "reasoning": "Hm."}
    assert chat(api, include_reasoning=False)["choices"][0]["message"] == {"role": "assistant", "content": "Warm."}
    repository = write(tmp_path / "other", THINKS)
    with gateway(repository, triton, rules=Rules(reasoning=False)) as running, httpx.Client(base_url=running.url) as off:
        assert chat(off)["choices"][0]["message"] == {"role": "assistant", "content": f"{THOUGHT}Warm."}


def test_usage_tells_how_many_tokens_are_thoughts(tmp_path: Path, triton: int, model: Model) -> None:
    model.answer = "<think>Hm.</think>Warm."
    model.ids = [10] + [5] * 9 + [11] + [6] * (len(model.answer) - 11)  # the marks' tokens come with their first letters
    with gateway(write(tmp_path, THINKS, "<think>", "</think>"), triton) as running, httpx.Client(base_url=running.url) as client:
        whole = chat(client, n=2)["usage"]
        streamed = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        lines = client.post(CHAT, json={**ASK, **streamed}).text.splitlines()
        usages = [json.loads(line[6:])["usage"] for line in lines if line.startswith("data: {")]
        body = {"model": "llm", "input": "How warm?"}
        response = client.post("/v1/responses", json=body).json()["usage"]
        events = client.post("/v1/responses", json={**body, "stream": True}).text.splitlines()
        (ended,) = [json.loads(line[6:]) for line in events if line.startswith('data: {"type":"response.completed"')]
        unasked = chat(client, structured_outputs={"regex": "(.|\n)*"})["usage"]
    assert whole["completion_tokens_details"] == {"reasoning_tokens": 18}
    assert usages[-1]["completion_tokens_details"] == {"reasoning_tokens": 9}
    assert [usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages[1:4]] == [7, 8, 9]
    for usage in (response, ended["response"]["usage"]):
        assert usage["output_tokens_details"] == {"reasoning_tokens": 9}
    assert unasked["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_usage_says_nothing_of_thoughts_that_cannot_be_counted(api: httpx.Client, model: Model) -> None:
    model.answer = f"{THOUGHT}Warm."
    assert "completion_tokens_details" not in chat(api)["usage"]


@pytest.mark.parametrize(
    ("ending", "answer", "thought", "content"),
    [
        ("<think>\n", "Hm.\n</think>\n\nWarm.", "Hm.", "Warm."),
        ("<think>\n\n</think>\n\n", "<think> is a tag", None, "<think> is a tag"),
        ("", "<think>Hm.</think>Warm.", "Hm.", "Warm."),
    ],
)
def test_a_prompt_may_begin_or_end_the_thoughts(
    tmp_path: Path, triton: int, model: Model, ending: str, answer: str, thought: str | None, content: str
) -> None:
    model.answer = answer
    repository = write(tmp_path, f"{{{{ messages[0].content }}}}{ending}{{# </think> #}}")
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url) as client:
        message = chat(client)["choices"][0]["message"]
    assert (message.get("reasoning_content"), message["content"]) == (thought, content)


def test_a_message_that_is_continued_may_end_within_its_thoughts(api: httpx.Client, model: Model) -> None:
    model.answer = "Hm.</think>Warm."
    for begun, thought in (("<think>Let me", "Hm."), ("<think>a</think>So ", None)):
        messages = [*ASK["messages"], {"role": "assistant", "content": begun}]
        message = chat(api, messages=messages, continue_final_message=True)["choices"][0]["message"]
        assert message.get("reasoning_content") == thought


def test_thoughts_come_before_an_answer_of_a_schema(api: httpx.Client, model: Model) -> None:
    chat(api, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": CITY}})
    assert model.asked[-1]["structured_outputs"]["grammar"].startswith("%llguidance {}\nstart: thinks? json")
    model.answer = f"{THOUGHT}a"
    message = chat(api, structured_outputs={"regex": "(.|\n)*a"})["choices"][0]["message"]
    assert message["content"] == model.answer  # the caller has bound all of it


def test_what_is_wrong_with_a_grammar_is_said_of_the_tools(tmp_path: Path) -> None:
    def refuse(inputs: Tensors) -> Iterator[Tensors]:
        from small_servers import RefusedError

        raise RefusedError(
            "structured_outputs.grammar: x is not allowed [nereid: INVALID_ARG invalid structured_outputs.grammar]"
        )
        yield {}

    with (
        grpc_server({"llm": refuse}) as (port, _),
        gateway(write(tmp_path, THINKS), port) as running,
        httpx.Client(base_url=running.url) as client,
    ):
        assert refused(client, tools=[WARMTH], tool_choice="required") == ("tools", "tools: x is not allowed")


# --- channels and sections ---

IN_CHANNELS = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Well.<|end|><|start|>assistant"
    '<|channel|>commentary to=functions.warmth <|constrain|>json<|message|>{"city": "Łódź"}'
)


@pytest.fixture
def harmony(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    marks = [f"<|{name}|>" for name in ("start", "channel", "message", "end", "call", "constrain")]
    with gateway(write(tmp_path, FAMILIES["gpt-oss"], *marks), triton) as running, httpx.Client(base_url=running.url) as client:
        yield client


def test_channels_are_thoughts_text_and_calls(harmony: httpx.Client, model: Model) -> None:
    model.answer = IN_CHANNELS
    (choice,) = chat(harmony, tools=[WARMTH])["choices"]
    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "Well.", "reasoning_content": "Hm.", "reasoning": "Hm."}
    assert (call["function"], choice["finish_reason"]) == ({"name": "warmth", "arguments": '{"city": "Łódź"}'}, "tool_calls")
    assert model.asked[-1]["skip_special_tokens"] is False
    with client_of(harmony).chat.completions.stream(**ASK, tools=[WARMTH]) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0].message
    assert (streamed.content, streamed.tool_calls[0].function.arguments) == ("Well.", '{"city": "Łódź"}')  # type: ignore[index]
    assert kinds.count("tool_calls.function.arguments.delta") > 10
    result = {"role": "tool", "tool_call_id": call["id"], "content": "20"}
    chat(harmony, messages=[*ASK["messages"], {**choice["message"], "tool_calls": [call]}, result], tools=[WARMTH])
    assert "<|channel|>analysis<|message|>Hm.\n\nWell.<|end|><|start|>assistant to=functions.warmth" in model.prompts[-1]
    assert model.prompts[-1].endswith('to=assistant<|channel|>commentary<|message|>"20"<|end|><|start|>assistant')


def test_channels_are_items_of_a_response(harmony: httpx.Client, model: Model) -> None:
    model.answer = IN_CHANNELS
    tool = {"type": "function", **WARMTH["function"]}  # type: ignore[dict-item]
    output = harmony.post("/v1/responses", json={"model": "llm", "input": "How warm?", "tools": [tool]}).json()["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]


def test_channels_are_told_apart_without_tools_too(harmony: httpx.Client, model: Model) -> None:
    model.answer = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Warm."
    model.ids = [10] * len(model.answer)
    (choice,) = chat(harmony)["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("Warm.", "Hm.")
    chat(harmony, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": CITY}})
    assert '"final"' in model.asked[-1]["structured_outputs"]["grammar"]
    model.answer = "on.<|end|>"
    messages = [*ASK["messages"], {"role": "assistant", "content": "And so "}]
    assert chat(harmony, messages=messages, continue_final_message=True)["choices"][0]["message"]["content"] == "on."
    model.answer = '"a"'
    assert chat(harmony, structured_outputs={"regex": ".*"})["choices"][0]["message"]["content"] == '"a"'


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "warmth"}}], ids=["required", "named"])
def test_channels_are_bound_where_a_call_must_be(harmony: httpx.Client, model: Model, choice: Any) -> None:
    model.answer = IN_CHANNELS
    chat(harmony, tools=[WARMTH, NOW], tool_choice=choice)
    grammar = model.asked[-1]["structured_outputs"]["grammar"]
    assert "commentary to=functions.warmth" in grammar
    assert ("functions.now" in grammar) is (choice == "required")
    assert 'note: (<[11]> | "<|channel|>") ("analysis")' in grammar


def test_channels_stay_as_they_are_where_thoughts_are_not_told(tmp_path: Path, triton: int, model: Model) -> None:
    model.answer = IN_CHANNELS
    rules = Rules(reasoning=False)
    repository = write(tmp_path, FAMILIES["gpt-oss"])
    with gateway(repository, triton, rules=rules) as running, httpx.Client(base_url=running.url) as client:
        assert chat(client)["choices"][0]["message"] == {"role": "assistant", "content": IN_CHANNELS}
        message = chat(client, tools=[WARMTH])["choices"][0]["message"]
    assert (message["content"], len(message["tool_calls"])) == ("Hm.\n\nWell.", 1)


@pytest.mark.parametrize("version", ["v3", "v3.1"])
def test_calls_in_a_section_are_told_and_go_back_to_the_template(tmp_path: Path, triton: int, model: Model, version: str) -> None:
    call = {"v3": "function<|tool_sep|>warmth\n```json\n%s\n```", "v3.1": "warmth<|tool_sep|>%s"}[version] % '{"city": "Łódź"}'
    written = deepseek(f"<|tool_calls_begin|><|tool_call_begin|>{call}<|tool_call_end|><|tool_calls_end|>")
    thinks = version == "v3.1"
    model.answer = f"{'Hm.</think>' if thinks else ''}Well.{written}"
    repository = write(tmp_path, FAMILIES[f"deepseek {version} with tools"])
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url) as client:
        asked = {"tools": [WARMTH], "chat_template_kwargs": {"thinking": True}}
        message = chat(client, **asked)["choices"][0]["message"]
        assert (message["content"], message.get("reasoning_content")) == ("Well.", "Hm." if thinks else None)
        assert message["tool_calls"][0]["function"] == {"name": "warmth", "arguments": '{"city": "Łódź"}'}
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "20"}
        for content in ("Well.", None):
            chat(client, messages=[*ASK["messages"], {**message, "content": content}, result], tools=[WARMTH])
            assert written in model.prompts[-1]
            assert deepseek("<|tool_output_begin|>20<|tool_output_end|>") in model.prompts[-1]
        chat(client, tools=[WARMTH], tool_choice="required")
    grammar = model.asked[-1]["structured_outputs"]["grammar"]
    assert deepseek("<|tool_calls_begin|>") in grammar
    assert ("```json" in grammar) is (version == "v3")
