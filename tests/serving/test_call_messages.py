"""Tools and earlier calls as chat templates take them: whatever a template does with them, none is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from nereid.serving.gateway.call_messages import ArgumentsObject, Write, arguments_of, with_ids
from nereid.serving.gateway.chat_templates import Chat, ChatTemplates
from nereid.serving.gateway.messages import Message
from nereid.serving.gateway.tool_formats import TOOL_FORMATS

from calling_answers import minimax, step, xtml
from template_families import FAMILIES, deepseek, dsml

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


SHOWN = {
    "deepseek v3.2 with tools": dsml(
        '<%function_calls>\n<%invoke name="now">\n<%parameter name="city" string="true">Łódź</%parameter>\n'
        '<%parameter name="n" string="false">1</%parameter>\n</%invoke>\n<%invoke name="warmth">\n'
    ),
    "kimi k2 with tools": "<|tool_calls_section_begin|><|tool_call_begin|>idnow<|tool_call_argument_begin|>"
    f"{SPACED}<|tool_call_end|><|tool_call_begin|>idwarmth<|tool_call_argument_begin|>",
    "nemotron nano 2 with tools": f'<TOOLCALL>[{{"name": "now", "arguments": {SPACED}}}, {{"name": "warmth"',
    "nemotron 3 nano with tools": "<tool_call>\n<function=now>\n<parameter=city>\nŁódź\n</parameter>\n<parameter=n>\n1\n"
    "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=warmth>",
    "glm 4.6 with tools": "<tool_call>now\n<arg_key>city</arg_key>\n<arg_value>Łódź</arg_value>\n<arg_key>n</arg_key>\n"
    "<arg_value>1</arg_value>\n</tool_call>\n<tool_call>warmth\n",
    "minimax m2 with tools": '<minimax:tool_call>\n<invoke name="now">\n<parameter name="city">Łódź</parameter>\n'
    '<parameter name="n">1</parameter>\n</invoke>\n<invoke name="warmth">\n',
    "command r7b with tools": f'<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "now", "parameters": {SPACED}}},\n'
    '    {"tool_call_id": "1", "tool_name": "warmth"',
    "lfm2 with tools": "<|tool_call_start|>[now(city='Łódź', n=1), warmth(",
    "kimi k3 with tools": xtml(
        '[tools][call tool="now" index="1"][argument key="city" type="string"]Łódź[/argument]'
        '[argument key="n" type="number"]1[/argument][/call][call tool="warmth" index="2"]'
    ),
    "minimax m3 with tools": minimax(
        '%<tool_call>\n%<invoke name="now">%<city>Łódź%</city>%<n>1%</n>%</invoke>\n%<invoke name="warmth">'
    ),
    "gigachat 3.5 with tools": dsml(
        '<%tool_calls>\n<%invoke name="now">\n<%parameter name="city" string="true">Łódź</%parameter>\n'
        '<%parameter name="n" string="false">1</%parameter>\n</%invoke>\n<%invoke name="warmth">\n'
    ).replace("DSML", "GCML"),
    "step 3 with tools": step(
        '<|tool_calls_begin|>\n<|tool_call_begin|>function<|tool_sep|><steptml:invoke name="now">\n<steptml:parameter '
        'name="city">Łódź</steptml:parameter>\n<steptml:parameter name="n">1</steptml:parameter>\n</steptml:invoke>'
        '<|tool_call_end|>\n<|tool_call_begin|>function<|tool_sep|><steptml:invoke name="warmth">\n'
    ),
    "apertus with tools": f'<|tools_prefix|>[{{"now": {TEXT}}}, {{"warmth": ',
    "gemma 4 with tools": '<|tool_call>call:now{city:<|"|>Łódź<|"|>,n:1}<tool_call|><|tool_call>call:warmth{',
}


@pytest.mark.parametrize("family", SHOWN)
def test_earlier_calls_are_shown_as_their_model_writes_them(family: str) -> None:
    for content in (None, ""):
        sent = called("now", "warmth", content=content)
        shown = prompt(FAMILIES[family], ASKED, sent, result("now"), result("warmth"), tools=[TOOL])
        assert SHOWN[family] in shown
        assert shown.index(SHOWN[family]) < shown.index("of now") < shown.index("of warmth")


@pytest.mark.parametrize("family", SHOWN)
def test_earlier_arguments_that_are_no_object_are_not_lost(family: str) -> None:
    sent = called("now")
    sent["tool_calls"][0]["function"]["arguments"] = '{"city": "Łó'
    shown = prompt(FAMILIES[family], ASKED, sent, result("now"))
    assert "Łó" in shown
    assert "of now" in shown


@pytest.mark.parametrize(
    ("form", "expected"), [("kimi_k2", ["functions.f:0", "functions.g:7", "functions.g:2"]), ("mistral", ["abcdefgh1"])]
)
def test_ids_of_another_models_calls_become_such_as_a_template_takes(form: str, expected: list[str]) -> None:
    ids = TOOL_FORMATS[form].ids
    assert ids is not None
    sent = ["call_1", "functions.g:7", "call_3"] if form == "kimi_k2" else ["abcdefgh1", "call_1", "call_3"]
    functions = [{"name": name, "arguments": {}} for name in ("f", "g", "g")]
    calls = [{"id": identity, "function": function} for identity, function in zip(sent, functions, strict=True)]
    results = [{"role": "tool", "tool_call_id": identity, "content": identity} for identity in sent[::-1]]
    first = {"role": "assistant", "tool_calls": calls[:1]}
    made = with_ids([first, results[2], {"role": "assistant", "tool_calls": calls[1:]}, *results[:2]], ids)
    found = [call["id"] for message in made for call in message.get("tool_calls", ())]
    assert found[: len(expected)] == expected
    assert all(ids.allowed.fullmatch(identity) for identity in found)
    assert len(set(found)) == 3
    answered = {message["content"]: message["tool_call_id"] for message in made if message["role"] == "tool"}
    assert answered == dict(zip(sent, found, strict=True))


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


@pytest.mark.parametrize("family", ["gpt-oss", "llama 3.1 with tools", "gigachat 3 with tools"])
def test_several_calls_are_shown_one_by_one_where_a_template_shows_one(family: str) -> None:
    shown = prompt(FAMILIES[family], ASKED, called("now", "warmth"), result("warmth"), result("now"), ASKED)
    places = [shown.index(words) for words in ("now", "of now", "warmth", "of warmth")]
    assert places == sorted(places)
    assert shown.count("Łódź") == 2


def test_a_text_before_several_calls_is_shown_once_and_results_of_no_call_are_shown_behind() -> None:
    sent = called("now", "warmth", content="Let me see.")
    other = {"role": "tool", "tool_call_id": "other", "content": "of another"}
    shown = prompt(FAMILIES["gpt-oss"], ASKED, sent, other, result("warmth"), result("now"))
    assert shown.count("Let me see.") == 1
    places = [shown.index(words) for words in ("Let me see.", "of now", "of warmth", "of another")]
    assert places == sorted(places)


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
        (
            "nemotron",
            f'Well.<TOOLCALL>[{{"name": "now", "arguments": {SPACED}}}, {{"name": "warmth", "arguments": {SPACED}}}]</TOOL',
        ),
        (
            "cohere",
            f'Well.<|START_ACTION|>[\n    {{"tool_name": "now", "parameters": {SPACED}}},\n    {{"tool_name": "warmth"',
        ),
        (
            "kimi_k2",
            "Well.<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>"
            f"{SPACED}<|tool_call_end|><|tool_call_begin|>functions.warmth:1<",
        ),
        ("olmo3", 'Well.<function_calls>\nnow(city="Łódź", n=1)\nwarmth(city="Łódź", n=1)\n</function_calls>'),
        ("lfm2", 'Well.<|tool_call_start|>[now(city="Łódź", n=1), warmth(city="Łódź", n=1)]<|tool_call_end|>'),
        ("pythonic", 'Well.[now(city="Łódź", n=1), warmth('),
        (
            "internlm",
            f'Well.<|action_start|><|plugin|>\n{{"name": "now", "parameters": {SPACED}}}\n<|action_end|>\n<|action_start|>',
        ),
        ("apertus", f'Well.<|tools_prefix|>[{{"now": {SPACED}}}, {{"warmth": {SPACED}}}]<|tools_suffix|>'),
        ("xlam", f'Well.[{{"name": "now", "arguments": {SPACED}}}, {{"name": "warmth"'),
        ("granite_20b_fc", f'Well.<function_call> {{"name": "now", "arguments": {SPACED}}}\n<function_call> {{"name": "warmth"'),
        (
            "gigachat3",
            f'Well.function call<|role_sep|>\n{{"name": "now", "arguments": {SPACED}}}<|message_sep|>\n\nfunction call',
        ),
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
