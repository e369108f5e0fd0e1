"""Tools and earlier calls as chat templates take them: whatever a template does with them, none is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from nereid.serving.gateway.call_messages import ArgumentsObject, Write, arguments_of
from nereid.serving.gateway.chat_templates import Chat, ChatTemplates
from nereid.serving.gateway.messages import Message
from nereid.serving.gateway.tool_formats import TOOL_FORMATS

from template_families import FAMILIES, deepseek

TEXT, SPACED = '{"city":"Łódź", "n": 1}', '{"city": "Łódź", "n": 1}'
ASKED = {"role": "user", "content": "How warm?"}
TOOL = {"type": "function", "function": {"name": "warmth"}}


def called(*names: str, **more: Any) -> dict[str, Any]:
    calls = [{"id": f"id{name}", "type": "function", "function": {"name": name, "arguments": TEXT}} for name in names]
    return {"role": "assistant", "content": None, "tool_calls": calls, **more}


def result(name: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"id{name}", "content": f"of {name}"}


def prompt(
    template: str, *sent: dict[str, Any], tools: Sequence[dict[str, Any]] | None = None, write: Write | None = None
) -> str:
    """Of messages as a client sends them."""
    messages = [Message.model_validate(message).for_template for message in sent]
    return ChatTemplates.of({"default": template}, {"bos_token": "", "eos_token": ""}).rendered(
        Chat(messages=messages, tools=tools, write_calls=write)
    )


def test_arguments_are_an_object_and_a_text() -> None:
    made = arguments_of(TEXT)
    assert isinstance(made, ArgumentsObject)
    assert (json.loads(json.dumps(made)), str(made), "a" + made, made + "b") == (json.loads(TEXT), TEXT, "a" + TEXT, TEXT + "b")
    with pytest.raises(TypeError):
        3 + made


@pytest.mark.parametrize(
    "shown",
    ["{{ c.arguments }}", "{{ '' + c.arguments + '' }}", "{{ '' ~ c.arguments }}", "{{ c.arguments | string }}"],
)
def test_a_template_that_takes_arguments_as_text_is_given_the_text_that_was_sent(shown: str) -> None:
    calls = "{% for m in messages %}{% for c in m.tool_calls | map(attribute='function') %}" + shown + "{% endfor %}{% endfor %}"
    assert prompt(calls, ASKED, called("now")) == TEXT


def test_deepseeks_calls_are_shown_whatever_stands_for_no_content() -> None:
    expected = deepseek(f"<|tool_calls_begin|><|tool_call_begin|>now<|tool_sep|>{TEXT}<|tool_call_end|><|tool_calls_end|>")
    for content in (None, ""):
        shown = prompt(FAMILIES["deepseek v3.1 with tools"], ASKED, called("now", content=content), result("now"))
        assert expected in shown
        assert deepseek("<|tool_output_begin|>of now<|tool_output_end|>") in shown


NULL_ALONE = """{% for m in messages %}{% if m['content'] is none %}CALL{{ m.tool_calls[0].function.arguments }};{% else
    %}{{ m.role + ':' + m['content'] + ';' }}{% endif %}{% endfor %}"""


def test_calls_that_are_shown_beside_null_alone_are_shown_beside_nothing_and_behind_text() -> None:
    for content in (None, ""):
        assert prompt(NULL_ALONE, ASKED, called("now", content=content)) == f"user:How warm?;CALL{TEXT};"
    shown = prompt(NULL_ALONE, ASKED, called("now", content="Let me see."), result("now"))
    assert shown == f"user:How warm?;assistant:Let me see.;CALL{TEXT};tool:of now;"


@pytest.mark.parametrize("family", ["qwen 3, which thinks", "chatml", "granite"])
def test_a_template_that_needs_a_content_is_given_an_empty_one(family: str) -> None:
    assert "of now" in prompt(FAMILIES[family], ASKED, called("now"), result("now"))


@pytest.mark.parametrize("family", ["gpt-oss", "llama 3.1 with tools"])
def test_several_calls_are_shown_one_by_one_where_a_template_shows_one(family: str) -> None:
    shown = prompt(FAMILIES[family], ASKED, called("now", "warmth"), result("warmth"), result("now"), ASKED)
    places = [shown.index(words) for words in ("now", "of now", "warmth", "of warmth")]
    assert places == sorted(places)
    assert shown.count("Łódź") == 2


def test_several_calls_stay_together_where_a_template_shows_them() -> None:
    shown = prompt(FAMILIES["hermes"], ASKED, called("now", "warmth"), result("now"), result("warmth"))
    assert shown.count("<|im_start|>assistant\n<tool_call>") == 1
    assert shown.count("<tool_call>") == 2


def test_text_and_thoughts_are_both_shown_where_a_template_refuses_both() -> None:
    sent = called("now", content="Let me see.", reasoning_content="Hm.")
    shown = prompt(FAMILIES["gpt-oss"], ASKED, sent, result("now"))
    assert "<|channel|>analysis<|message|>Hm.\n\nLet me see.<|end|><|start|>assistant to=functions.now" in shown
    alone = prompt(FAMILIES["gpt-oss"], ASKED, called("now", reasoning_content="Hm."), result("now"))
    assert "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.now" in alone
    assert '<|start|>functions.now to=assistant<|channel|>commentary<|message|>"of now"<|end|>' in alone


@pytest.mark.parametrize("text", ['{"city": "Łó', "[1]", "null", "not JSON"])
def test_arguments_that_are_no_object_are_shown_as_they_were_written(text: str) -> None:
    """An agent sends back what the model has written, and is to go on from there."""
    sent = called("now")
    sent["tool_calls"][0]["function"]["arguments"] = text
    assert deepseek(f"<|tool_sep|>{text}<|tool_call_end|>") in prompt(FAMILIES["deepseek v3.1 with tools"], ASKED, sent)
    assert f'"arguments": {json.dumps(text, ensure_ascii=False)}' in prompt(FAMILIES["hermes"], ASKED, sent)
    members = "{% for m in messages %}{% for c in m.tool_calls %}{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}"
    assert prompt(f"{members}{'{% endfor %}' * 3}", ASKED, sent) == f"arguments={text}"


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("granite", f'Well.<|tool_call|>[{{"name": "now", "arguments": {SPACED}}}, {{"name": "warmth", "arguments": {SPACED}}}]'),
        ("hermes", f'Well.<tool_call>\n{{"name": "now", "arguments": {SPACED}}}\n</tool_call>\n<tool_call>\n'),
        ("llama3_json", f'Well.{{"name": "now", "parameters": {SPACED}}}; {{"name": "warmth"'),
        ("qwen3_coder", "Well."),
    ],
)
def test_calls_that_a_template_does_not_show_stand_in_the_content_as_the_model_writes_them(form: str, written: str) -> None:
    write = TOOL_FORMATS[form].written
    shown = prompt(FAMILIES["granite"], ASKED, called("now", "warmth", content="Well."), result("now"), write=write)
    assert f"<|start_of_role|>assistant<|end_of_role|>{written}" in shown
    alone = prompt(FAMILIES["granite"], ASKED, called("now", "warmth"), result("now"), write=write)
    assert f"<|start_of_role|>assistant<|end_of_role|>{written.removeprefix('Well.')}" in alone
    assert "<|tool_call|>" not in prompt(FAMILIES["hermes"], ASKED, called("now"), write=TOOL_FORMATS["granite"].written)


def test_a_tool_has_what_a_template_fails_without() -> None:
    needy = "{% for t in tools %}{{ t.function.description + ':' }}{{ t.function.parameters | tojson }}{% endfor %}"
    assert prompt(needy, ASKED, tools=[TOOL]) == ':{"type": "object", "properties": {}}'
    whole = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert prompt(needy, ASKED, tools=[{"type": "function", "function": whole}]) == 'd:{"type": "object"}'
    assert prompt("{{ tools | tojson }}", ASKED, tools=[TOOL]) == json.dumps([TOOL])


@pytest.mark.parametrize("text", ['{"at": "\\ud83d"}', '{"\\udc00": 1}', '{"at": NaN}', '{"at": [1e999]}'])
def test_an_object_that_cannot_be_written_down_again_is_a_text(text: str) -> None:
    assert arguments_of(text) == text
    call = {"id": "idnow", "type": "function", "function": {"name": "now", "arguments": text}}
    shown = prompt(FAMILIES["hermes"], ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, result("now"))
    assert f'"arguments": {json.dumps(text)}' in shown
    assert shown.encode()
