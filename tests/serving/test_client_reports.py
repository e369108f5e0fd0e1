"""Requests that made clients fail at other servers, each from a public report; taken here, or refused by the field's name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nereid.serving.gateway.launch import Rules

from calling_model import ASK, CHAT, NOW, Model, write
from gateway_before import gateway

__all__ = ["Model"]

RESPONSES, COMPLETIONS = "/v1/responses", "/v1/completions"
TEMPLATE = """{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}
{{- '' if m.tool_calls else m.content + '' }}{% for call in m.tool_calls %}
{{- '<tool_call>' + call.function | tojson }}{% endfor %}{% endfor %}{% if tools %}<tool_call>{% endif %}"""
USER: dict[str, Any] = {"role": "user", "content": "Hi."}
CALLED: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "c", "content": "noon"}
SAID: dict[str, Any] = {"role": "assistant", "content": "Ah."}
FLAT: dict[str, Any] = {"type": "function", "name": "now"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("repository"), TEMPLATE)


@pytest.fixture
def api(repository: Path, triton: int) -> Iterator[httpx.Client]:
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture
def lenient(repository: Path, triton: int) -> Iterator[httpx.Client]:
    rules = Rules(lenient=True)
    with gateway(repository, triton, rules=rules) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture
def model() -> Model:
    return Model("Well.")


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        # https://github.com/0xPlaygrounds/rig/issues/1362: calls beside an empty list
        ([USER, {"role": "assistant", "content": [], "tool_calls": [CALLED]}, RESULT], "<tool_call>"),
        # https://github.com/abetlen/llama-cpp-python/issues/1805: calls without content
        ([USER, {"role": "assistant", "tool_calls": [CALLED]}, RESULT], "<tool_call>"),
        # https://github.com/vllm-project/vllm/issues/21089
        ([USER, {"role": "assistant", "content": ""}, USER], "<user>Hi.<assistant><user>Hi."),
        # https://github.com/co-l/openfox/pull/117: null where an answer had no text
        ([USER, {"role": "assistant", "content": None}, USER], "<user>Hi.<assistant><user>Hi."),
        ([USER, {"role": "assistant", "content": None, "tool_calls": []}, USER], "<user>Hi.<assistant><user>Hi."),
        ([USER, {"role": "assistant", "reasoning_content": "Hm."}, USER], "<user>Hi.<assistant>Hm.<user>Hi."),
        # https://github.com/anomalyco/opencode/issues/27852
        ([USER, {**SAID, "reasoning": "Hm."}, USER], "<user>Hi.<assistant>Hm.Ah.<user>Hi."),
        # https://github.com/BerriAI/litellm/pull/20334, /39962, https://github.com/LiveBench/LiveBench/pull/484
        ([USER, {**SAID, "provider_specific_fields": {"refusal": None}, "images": []}, USER], "<assistant>Ah."),
        ([USER, {**SAID, "reasoning_details": [{"type": "reasoning.text"}], "thinking_blocks": []}, USER], "<assistant>Ah."),
        ([USER, {**SAID, "tool_calls": [{**CALLED, "extra_content": {"google": {}}}]}, RESULT], "<tool_call>"),
        # https://github.com/vllm-project/vllm/pull/10463: messages with names of their own
        ([{**USER, "id": 1947269257}], "<user>Hi."),
        # https://github.com/nomtek/mistralai_client_dart/issues/44, https://github.com/razzant/ouroboros/pull/33
        ([{**USER, "name": None, "tool_calls": None, "refusal": None, "audio": None, "function_call": None}], "<user>Hi."),
        # OpenAI's own part of an assistant that has refused
        ([USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, USER], "<assistant>No.<user>"),
    ],
    ids=str,
)
def test_what_clients_send_back_of_earlier_answers_is_taken(
    api: httpx.Client, model: Model, messages: list[dict[str, Any]], prompt: str
) -> None:
    answer = api.post(CHAT, json={"model": "llm", "messages": messages})
    assert answer.status_code == 200, answer.text
    assert prompt in model.prompts[-1]
    assert "None" not in model.prompts[-1]
    assert "provider" not in model.prompts[-1]


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        # https://github.com/huggingface/text-generation-inference/pull/2228, https://github.com/microsoft/TaskWeaver/issues/231
        ({"top_p": 0}, {"top_p": 0.0}),
        # https://github.com/continuedev/continue/issues/1371, /1824, /2461
        ({"stop": [f"<{place}>" for place in range(20)]}, {"stop": [f"<{place}>" for place in range(20)]}),
        # numbers of languages that know one kind of them
        ({"n": 1.0, "seed": 12345.0, "max_tokens": 8.0, "top_k": -1.0}, {"n": 1, "seed": 12345, "max_tokens": 8, "top_k": -1}),
        # https://github.com/vllm-project/vllm/issues/22403: agents always send an effort
        ({"reasoning_effort": "medium"}, {}),
        # llama.cpp's and Together's form of a schema
        (
            {"response_format": {"type": "json_object", "schema": {"type": "array"}}},
            {"structured_outputs": {"json": {"type": "array"}}},
        ),
        # https://github.com/ggml-org/llama.cpp/pull/28697: the form of its own documentation
        (
            {"response_format": {"type": "json_schema", "schema": {"type": "array"}, "json_schema": None}},
            {"structured_outputs": {"json": {"type": "array"}}},
        ),
        ({"tools": [{"function": {"name": "now"}}]}, {}),
    ],
    ids=str,
)
def test_what_clients_send_as_options_is_taken(
    api: httpx.Client, model: Model, change: dict[str, Any], asked: dict[str, Any]
) -> None:
    answer = api.post(CHAT, json={**ASK, **change})
    assert answer.status_code == 200, answer.text
    sent = model.asked[-1]
    assert {name: sent.get(name) for name in asked} == asked
    assert all(isinstance(sent[name], type(value)) for name, value in asked.items())


# https://github.com/openai/codex/issues/10635, https://github.com/ggml-org/llama.cpp/issues/20156, /22389
OTHER_TOOLS: list[dict[str, Any]] = [
    {"type": "web_search", "external_web_access": False},
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
    {"type": "namespace", "name": "mcp", "tools": [FLAT]},
]


def test_tools_of_other_types_are_refused_by_name_or_left_out_where_that_is_asked_for(
    api: httpx.Client, lenient: httpx.Client, model: Model
) -> None:
    flat = {"model": "llm", "input": "Hi.", "tools": [OTHER_TOOLS[0], FLAT, *OTHER_TOOLS[1:]], "tool_choice": "auto"}
    chat = {**ASK, "tools": [NOW, {"type": "web_search", "filters": {"name": "patch"}}]}
    searching = {**flat, "tools": [OTHER_TOOLS[0], FLAT]}
    for route, body, place in ((RESPONSES, searching, 0), (CHAT, chat, 1)):
        error = api.post(route, json=body).json()["error"]
        assert error["param"] == f"tools.{place}.type"
        assert error["message"].endswith("is not allowed; it must be 'function' or 'custom'")
    error = api.post(RESPONSES, json=flat).json()["error"]
    assert (error["param"], error["message"].partition(": ")[2]) == (
        "tools.2.format.syntax",
        "'lark' is not allowed; it must be 'regex'",
    )
    made = lenient.post(RESPONSES, json={**flat, "unheard_of": 1})
    assert made.status_code == 200, made.text
    assert sorted(made.headers["x-nereid-ignored-fields"].split(", ")) == ["tools.0", "tools.2", "tools.3", "unheard_of"]
    assert [tool["name"] for tool in made.json()["tools"]] == ["now"]
    told = lenient.post(CHAT, json=chat)
    assert (told.status_code, told.headers["x-nereid-ignored-fields"]) == (200, "tools.1")
    beside = {
        **ASK,
        "tools": [
            {"type": "other", "x": 1},
            {**NOW, "unheard_of": 1},
            {"type": "other"},
            {"function": {"name": "then"}, "y": 2},
        ],
    }
    left = lenient.post(CHAT, json=beside)
    assert left.status_code == 200, left.text
    names = sorted(left.headers["x-nereid-ignored-fields"].split(", "))
    assert names == ["tools.0", "tools.1.unheard_of", "tools.2", "tools.3.y"]
    wrong = lenient.post(CHAT, json={**ASK, "tools": [{"type": "other"}, {"type": "function", "function": {"name": "no name"}}]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tools.0.function.name")


def test_a_turn_of_codex_is_taken(api: httpx.Client, model: Model) -> None:
    """As Codex CLI sends it, functions alone; https://github.com/vllm-project/vllm/issues/33089, /45273: history, too."""
    given = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}], "encrypted_content": None},
        {"type": "function_call", "name": "now", "arguments": "{}", "call_id": "c", "status": None},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "noon"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    body = {
        "model": "llm",
        "instructions": "You are an agent.",
        "input": given,
        "tools": [FLAT],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
        "prompt_cache_key": "x",
        "client_metadata": {"x": "y"},
        "text": {"verbosity": "medium"},
    }
    answer = api.post(RESPONSES, json=body)
    assert answer.status_code == 200, answer.text
    assert "<assistant>Hm.<tool_call>" in model.prompts[-1]
    assert "<tool>noon<assistant>No." in model.prompts[-1]


@pytest.mark.parametrize(
    ("route", "body", "param", "allowed"),
    [
        (RESPONSES, {"input": [USER, {"type": "file_search_call", "queries": []}]}, "input.1.type", "'message', 'function_call'"),
        (RESPONSES, {"input": [USER, {"kind": "x"}]}, "input.1.type", "it is missing"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type", "'refusal'"),
        # https://github.com/ggml-org/llama.cpp/issues/23465
        (
            RESPONSES,
            {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]},
            "input.0.output.0.type",
            "'input_text'",
        ),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "or 'refusal'"),
        (CHAT, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0.type", "it is missing"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "it is missing"),
        (CHAT, {"messages": [USER, {"role": "tool", "tool_call_id": "c"}]}, "messages.1.content", "only an assistant's"),
        (
            CHAT,
            {"messages": [USER], "response_format": {"type": "text", "schema": {}}},
            "response_format.schema",
            "the type must be json_object or json_schema",
        ),
        (
            CHAT,
            {"messages": [USER], "response_format": {"type": "json_schema", "schema": {}, "json_schema": {"schema": {}}}},
            "response_format.schema",
            "with json_schema; send one of them",
        ),
        (
            CHAT,
            {"messages": [USER], "response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "response_format.json_schema",
            "the type must be json_schema",
        ),
        (COMPLETIONS, {"prompt": "x", "seed": 1.5}, "seed", "an integer"),
    ],
    ids=str,
)
def test_what_cannot_be_taken_is_refused_by_the_name_of_what_is_wrong(
    api: httpx.Client, route: str, body: dict[str, Any], param: str, allowed: str
) -> None:
    answer = api.post(route, json={"model": "llm", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert allowed in error["message"]
    assert "tag" not in error["message"]
