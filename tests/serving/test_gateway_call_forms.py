"""Each family's calls through the gateway: found whole and streamed, bound, and shown again, also with marks that are tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.tool_formats import TOOL_FORMATS

from calling_answers import minimax, step, xtml
from calling_model import ASK, CHAT, NOW, WARMTH, Model, chat, write
from gateway_before import gateway
from small_servers import grpc_server
from template_families import FAMILIES, dsml


@dataclass(frozen=True, kw_only=True)
class Family:
    """`written` is a call, which the template shows again; `tokens` are special; `answer`: what the model writes around it."""

    template: str
    written: str
    bound: str
    tokens: tuple[str, ...] = ()
    answer: str = "Hm.</think>\n\nWell.\n%s"
    kwargs: tuple[tuple[str, Any], ...] = ()


OPENS = "Hm.</think>\n\nWell.\n%s"
BEGINS = "<think>Hm.</think>Well.%s"
FORMS = {
    "deepseek_v32": Family(
        template="deepseek v3.2 with tools",
        written=dsml(
            '<%function_calls>\n<%invoke name="warmth">\n<%parameter name="city" string="true">Łódź</%parameter>\n'
            "</%invoke>\n</%function_calls>"
        ),
        bound='"invoke name=\\""',
        tokens=("｜DSML｜",),
        answer=OPENS,
    ),
    "kimi_k2": Family(
        template="kimi k2 with tools",
        written="<|tool_calls_section_begin|><|tool_call_begin|>functions.warmth:0<|tool_call_argument_begin|>"
        '{"city": "Łódź"}<|tool_call_end|><|tool_calls_section_end|>',
        bound="functions.warmth:",
        tokens=("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        answer=BEGINS,
    ),
    "nemotron": Family(
        template="nemotron nano 2 with tools",
        written='<TOOLCALL>[{"name": "warmth", "arguments": {"city": "Łódź"}}]</TOOLCALL>',
        bound="</TOOLCALL>",
        answer=OPENS,
    ),
    "qwen3_coder": Family(
        template="nemotron 3 nano with tools",
        written="<tool_call>\n<function=warmth>\n<parameter=city>\nŁódź\n</parameter>\n</function>\n</tool_call>",
        bound="<parameter=city>",
        tokens=("<tool_call>", "</tool_call>"),
        answer=OPENS,
    ),
    "glm45": Family(
        template="glm 4.6 with tools",
        written="<tool_call>warmth\n<arg_key>city</arg_key>\n<arg_value>Łódź</arg_value>\n</tool_call>",
        bound="<arg_key>",
        tokens=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<think>", "</think>"),
        answer=BEGINS,
    ),
    "minimax_m2": Family(
        template="minimax m2 with tools",
        written='<minimax:tool_call>\n<invoke name="warmth">\n<parameter name="city">Łódź</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        bound='<parameter name=\\"city\\">',
        tokens=("<minimax:tool_call>", "</minimax:tool_call>"),
        answer=OPENS,
    ),
    "cohere": Family(
        template="command r7b with tools",
        written='<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "warmth", "parameters": {"city": "Łódź"}}\n]'
        "<|END_ACTION|>",
        bound="tool_call_id",
        tokens=("<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>", "<|START_RESPONSE|>"),
        answer="<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Well.<|END_RESPONSE|>%s",
    ),
    "lfm2": Family(
        template="lfm2 with tools",
        written="<|tool_call_start|>[warmth(city='Łódź')]<|tool_call_end|>",
        bound="warmth(",
        tokens=("<|tool_call_start|>", "<|tool_call_end|>"),
        answer="Well.%s",
    ),
    "gemma4": Family(
        template="gemma 4 with tools",
        written='<|tool_call>call:warmth{city:<|"|>Łódź<|"|>}<tool_call|>',
        bound="call:warmth{",
        tokens=("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
        answer="<|channel>thought\nHm.\n<channel|>Well.%s",
        kwargs=(("enable_thinking", True),),
    ),
    "kimi_k3": Family(
        template="kimi k3 with tools",
        written=xtml('[tools][call tool="warmth" index="1"][argument key="city" type="string"]Łódź[/argument][/call][/tools]'),
        bound='argument key=\\"city\\" type=\\"string\\"',
        tokens=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        answer=xtml("Hm.[/think][response]Well.[/response]%s[/message]") + "<|end_of_msg|>",
    ),
    "minimax_m3": Family(
        template="minimax m3 with tools",
        written=minimax('%<tool_call>\n%<invoke name="warmth">%<city>Łódź%</city>%</invoke>\n%</tool_call>'),
        bound="</city>",
        tokens=("]<]minimax[>[", "<mm:think>", "</mm:think>"),
        answer="Hm.</mm:think>Well.\n%s",
    ),
    "gigachat3": Family(
        template="gigachat 3 with tools",
        written='function call<|role_sep|>\n{"name": "warmth", "arguments": {"city": "Łódź"}}',
        bound="function call",
        tokens=("<|role_sep|>", "<|message_sep|>"),
        answer="Well.<|message_sep|>\n\n%s<|message_sep|>\n\n",
    ),
    "gigachat35": Family(
        template="gigachat 3.5 with tools",
        written=dsml(
            '<%tool_calls>\n<%invoke name="warmth">\n<%parameter name="city" string="true">Łódź</%parameter>\n'
            "</%invoke>\n</%tool_calls>"
        ).replace("DSML", "GCML"),
        bound='"invoke name=\\""',
        tokens=("｜GCML｜", "<|message_sep|>"),
        answer="<think>Hm.</think>\n\nWell.\n\n%s<|message_sep|>",
    ),
    "step3": Family(
        template="step 3 with tools",
        written=step(
            '<|tool_calls_begin|>\n<|tool_call_begin|>function<|tool_sep|><steptml:invoke name="warmth">\n'
            '<steptml:parameter name="city">Łódź</steptml:parameter>\n</steptml:invoke><|tool_call_end|>\n<|tool_calls_end|>'
        ),
        bound="steptml:parameter",
        tokens=(
            "<｜tool_calls_begin｜>",
            "<｜tool_call_begin｜>",
            "<｜tool_sep｜>",
            "<｜tool_call_end｜>",
            "<｜tool_calls_end｜>",
        ),
        answer=OPENS,
    ),
    "apertus": Family(
        template="apertus with tools",
        written='<|tools_prefix|>[{"warmth": {"city": "Łódź"}}]<|tools_suffix|>',
        bound="warmth",
        tokens=("<|tools_prefix|>", "<|tools_suffix|>", "<|inner_prefix|>", "<|inner_suffix|>"),
        answer="<|inner_prefix|>Hm.<|inner_suffix|>Well.%s",
    ),
}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def triton(model: Model) -> Iterator[int]:
    with grpc_server({"llm": model}) as (port, _):
        yield port


def streamed(client: httpx.Client, **more: Any) -> tuple[str, str, list[dict[str, str]]]:
    """The text, the thoughts and the calls of an answer that comes piece by piece."""
    lines = client.post(CHAT, json={**ASK, "stream": True, **more}).text.splitlines()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    calls: list[dict[str, str]] = []
    for call in (call for part in deltas for call in part.get("tool_calls", ())):
        if "id" in call:
            calls.append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
        calls[call["index"]]["arguments"] += call["function"]["arguments"]
    text, thoughts = ("".join(part.get(name) or "" for part in deltas) for name in ("content", "reasoning_content"))
    return text, thoughts, calls


@pytest.mark.parametrize("form", FORMS)
def test_a_familys_calls_are_found_bound_and_shown_again(tmp_path: Path, triton: int, model: Model, form: str) -> None:
    family = FORMS[form]
    model.answer = family.answer % family.written
    thought = "Hm." if "Hm." in model.answer else None
    asked = {"tools": [WARMTH, NOW], "chat_template_kwargs": dict(family.kwargs)}
    repository = write(tmp_path, FAMILIES[family.template], *family.tokens)
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        (choice,) = chat(client, **asked)["choices"]
        message = choice["message"]
        assert (message["content"], message.get("reasoning_content"), choice["finish_reason"]) == ("Well.", thought, "tool_calls")
        (call,) = message["tool_calls"]
        assert call["function"] == {"name": "warmth", "arguments": '{"city": "Łódź"}'}
        assert model.asked[-1].get("skip_special_tokens", True) is not bool(family.tokens)
        text, thoughts, calls = streamed(client, **asked)
        assert (text, thoughts or None) == ("Well.", thought)
        assert [(item["name"], item["arguments"]) for item in calls] == [("warmth", '{"city": "Łódź"}')]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "20"}
        for content in ("Well.", None):
            chat(client, **asked, messages=[*ASK["messages"], {**message, "content": content}, result])
            assert family.written in model.prompts[-1]
            assert "20" in model.prompts[-1].partition(family.written)[2]
        chat(client, **asked, tool_choice="required")
    assert family.bound in model.asked[-1]["structured_outputs"]["grammar"]


def test_ids_are_the_models_own_and_those_of_others_are_put_into_its_form(tmp_path: Path, triton: int, model: Model) -> None:
    family = FORMS["kimi_k2"]
    model.answer = family.written.replace("warmth:0", "warmth:4") * 2
    repository = write(tmp_path, FAMILIES[family.template], *family.tokens)
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        calls = chat(client, tools=[WARMTH])["choices"][0]["message"]["tool_calls"]
        assert [call["id"] for call in calls] == ["functions.warmth:4", "functions.warmth:1"]
        other = {"id": "call_abc", "type": "function", "function": {"name": "warmth", "arguments": "{}"}}
        messages = [
            *ASK["messages"],
            {"role": "assistant", "content": None, "tool_calls": [other]},
            {"role": "tool", "tool_call_id": "call_abc", "content": "20"},
        ]
        chat(client, messages=messages, tools=[WARMTH])
    assert "<|tool_call_begin|>functions.warmth:0<|tool_call_argument_begin|>{}" in model.prompts[-1]
    assert "## Return of functions.warmth:0\n20" in model.prompts[-1]


def test_marks_around_an_answers_text_are_no_text(tmp_path: Path, triton: int, model: Model) -> None:
    family = FORMS["cohere"]
    repository = write(tmp_path, FAMILIES[family.template], *family.tokens)
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        for thought in ("", "<|START_THINKING|>Hm.<|END_THINKING|>"):
            model.answer = f"{thought}<|START_RESPONSE|>\nWarm.\n<|END_RESPONSE|>"
            assert chat(client)["choices"][0]["message"]["content"] == "Warm."
            assert streamed(client)[0] == "Warm."
        model.answer = "<|START_RESPONSE|> and <|END_RESPONSE|>"
        assert chat(client, structured_outputs={"regex": "(.|\n)*"})["choices"][0]["message"]["content"] == model.answer
    with (
        gateway(repository, triton, rules=Rules(reasoning=False)) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        assert chat(client)["choices"][0]["message"]["content"] == model.answer


def test_marks_around_text_are_none_wherever_they_stand(tmp_path: Path, triton: int, model: Model) -> None:
    tokens = FORMS["kimi_k3"].tokens
    repository = write(tmp_path, FAMILIES["kimi k3 with tools"], *tokens)
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        for thinks, answer in (
            (True, "Hm.[/think][response]Warm.[/response][/message]"),
            (False, "Warm.[/response][/message]"),
            (False, "Warm.[/respon"),
        ):
            model.answer = xtml(answer).replace("[/respon", "<|close|>respon")
            asked = {"chat_template_kwargs": {"thinking": thinks}}
            for more in ({}, {"tools": [WARMTH]}):
                message = chat(client, **asked, **more)["choices"][0]["message"]
                assert (message["content"], message.get("reasoning_content")) == ("Warm.", "Hm." if thinks else None)
                assert streamed(client, **asked, **more)[:2] == ("Warm.", "Hm." if thinks else "")
                assert model.asked[-1]["skip_special_tokens"] is False
    with (
        gateway(repository, triton, rules=Rules(reasoning=False)) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        assert chat(client)["choices"][0]["message"]["content"] == model.answer


def test_a_prompt_may_end_within_other_marks_of_thoughts(tmp_path: Path, triton: int, model: Model) -> None:
    template = "{{ messages[0].content }}<ifm|think></ifm|think>{{ '<ifm|think_' + pace + '>' }}{#- </ifm|think_fast> #}"
    with gateway(write(tmp_path, template), triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        for pace in ("fast", "faster"):
            model.answer = f"Hm.</ifm|think_{pace}>\nWarm."
            message = chat(client, chat_template_kwargs={"pace": pace})["choices"][0]["message"]
            assert (message["content"], message["reasoning_content"]) == ("Warm.", "Hm.")


def test_the_operator_may_say_each_form(tmp_path: Path, triton: int, model: Model) -> None:
    family = FORMS["glm45"]
    model.answer = family.written
    repository = write(tmp_path, "{{ tools }}")
    with (
        gateway(repository, triton, rules=Rules(tool_formats={"": "glm45"})) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        assert chat(client, tools=[WARMTH])["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "warmth"
    assert FORMS.keys() <= TOOL_FORMATS.keys()


def test_the_documents_name_each_form() -> None:
    documents = (Path(__file__).parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")
    assert [name for name in TOOL_FORMATS if f"`{name}`" not in documents] == []
