"""What other servers' users have reported of calls, as texts that models wrote; each is read as it was meant, whole and cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nereid.serving.gateway import tag_scanners
from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.call_forms import CallReading
from nereid.serving.gateway.chat_answers import message_of
from nereid.serving.gateway.said import Arguments
from nereid.serving.gateway.tag_values import is_json
from nereid.serving.gateway.tool_formats import TOOL_FORMATS

from calling_answers import minimax, step, xtml
from template_families import dsml

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "command": {"type": "string"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "place": {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "number"}]},
    },
    "$defs": {"place": {"type": "object"}},
}


def qwen(parameters: str) -> str:
    return f"<tool_call>\n<function=f>\n{parameters}</function>\n</tool_call>"


def glm(key: str, value: str) -> str:
    return f"<tool_call>f\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"


def deepseek(inside: str) -> str:
    return dsml(f'<%tool_calls>\n<%invoke name="f">\n{inside}</%tool_calls>')


def lfm(arguments: str) -> str:
    return f"<|tool_call_start|>[f({arguments})]<|tool_call_end|>"


REPORTS: list[tuple[str, str, str, dict[str, Any]]] = [
    # A name whose mark was left out: https://github.com/vllm-project/vllm/issues/39771, ml-explore/mlx-lm #1881
    (
        "qwen3_coder",
        "a >",
        qwen("<parameter=city\nx\n</parameter>\n<parameter=days>\n2\n</parameter>\n"),
        {"city": "x", "days": 2},
    ),
    ("qwen3_coder", "a >", qwen("<parameter=city>\nx\n</parameter>\n").replace("=f>", "=f"), {"city": "x"}),
    ("glm45", "a </arg_key>", glm("city", "x").replace("</arg_key>", ""), {"city": "x"}),
    # Marks within a text: https://github.com/raullenchai/Rapid-MLX/issues/1515
    ("qwen3_coder", "marks", qwen("<parameter=command>\na </parameter> b\n</parameter>\n"), {"command": "a </parameter> b"}),
    (
        "qwen3_coder",
        "marks",
        qwen("<parameter=command>\n</tool_call> </function>!\n</parameter>\n"),
        {"command": "</tool_call> </function>!"},
    ),
    ("glm45", "marks", glm("city", "a </arg_value> b </tool_call> c"), {"city": "a </arg_value> b </tool_call> c"}),
    (
        "qwen3_coder",
        "marks",
        qwen('<parameter=place>\n{"a": "</parameter>\\n"}\n</parameter>\n'),
        {"place": {"a": "</parameter>\n"}},
    ),
    (
        "deepseek_v4",
        "marks",
        deepseek('<%parameter name="city" string="true"></parameter> x</%parameter>\n</%invoke>\n'),
        {"city": "</parameter> x"},
    ),
    ("gemma4", "marks", '<|tool_call>call:f{command:<|"|>"<tool_call|>" }<|"|>}<tool_call|>', {"command": '"<tool_call|>" }'}),
    # A parameter left empty that is no text: https://github.com/sgl-project/sglang/pull/36835
    ("qwen3_coder", "empty", qwen("<parameter=days>\n</parameter>\n<parameter=city>\n\n</parameter>\n"), {"city": ""}),
    (
        "minimax_m2",
        "empty",
        '<minimax:tool_call><invoke name="f"><parameter name="tags"></parameter></invoke></minimax:tool_call>',
        {},
    ),
    # What cannot be read as its type: https://github.com/ml-explore/mlx-lm/pull/1310
    ("qwen3_coder", "a date", qwen("<parameter=days>\n2026-01-15\n</parameter>\n"), {"days": "2026-01-15"}),
    # JSON that was written twice: https://github.com/vllm-project/vllm/pull/36032, clacky-ai/openclacky #457
    ("glm45", "twice", glm("tags", '"[\\"a\\"]"'), {"tags": ["a"]}),
    ("glm45", "not twice", glm("city", '["a"]'), {"city": '["a"]'}),
    # References and unions: https://github.com/vllm-project/vllm/issues/46924, https://github.com/sgl-project/sglang/issues/16057
    ("glm45", "a reference", glm("place", '{"a": 1}'), {"place": {"a": 1}}),
    (
        "minimax_m2",
        "a union",
        '<minimax:tool_call><invoke name="f"><parameter name="note">hi</parameter></invoke>',
        {"note": "hi"},
    ),
    # Marks without the word, and all parameters in one: https://github.com/vllm-project/vllm/pull/52645, vllm #41801
    ("deepseek_v4", "no word", deepseek('<%parameter name="city" string="true">x</%parameter>\n</invoke>'), {"city": "x"}),
    ("deepseek_v4", "no word", deepseek('<parameter name="city" string="true">x</parameter>\n</invoke>'), {"city": "x"}),
    ("deepseek_v32", "no marks", dsml('<%invoke name="f">\n<%parameter name="city">3</%parameter>\n</%invoke>'), {"city": "3"}),
    (
        "deepseek_v4",
        "all in one",
        deepseek('<%parameter name="arguments" string="false">{"city": "x", "days": 3}</%parameter>\n</%invoke>\n'),
        {"city": "x", "days": 3},
    ),
    # A text whose first mark was left out: https://github.com/sgl-project/sglang/pull/39240
    ("gemma4", "no mark", '<|tool_call>call:f{city:weather in Rome<|"|>}<tool_call|>', {"city": "weather in Rome"}),
    ("gemma4", "no mark", '<|tool_call>call:f{city:Paris, France<|"|>,days:5}<tool_call|>', {"city": "Paris, France", "days": 5}),
    ("gemma4", "a stray ]", "<|tool_call>call:f{tags:[a]],days:5}<tool_call|>", {"tags": ["a"], "days": 5}),
    # https://github.com/raullenchai/Rapid-MLX/pull/1102
    (
        "gemma4",
        "nested",
        '<|tool_call>call:f{place:{m:<|"|>a } b<|"|>,n:[1,-2.5]},days:5}<tool_call|>',
        {"place": {"m": "a } b", "n": [1, -2.5]}, "days": 5},
    ),
    # https://github.com/vllm-project/vllm/pull/48171, https://github.com/sgl-project/sglang/issues/27910, llama.cpp #26658
    ("lfm2", "a bracket", lfm("command='grep -F \"]\" log.txt'"), {"command": 'grep -F "]" log.txt'}),
    ("lfm2", "a line break", lfm("command='cat << EOF\nx\nEOF'"), {"command": "cat << EOF\nx\nEOF"}),
    ("lfm2", "a backslash", lfm(r"command='pattern \\'"), {"command": "pattern \\"}),
    ("lfm2", "a negative number", lfm("place=-74.0046539"), {"place": -74.0046539}),
    ("lfm2", "a tuple", lfm("tags=('a', 'b')"), {"tags": ["a", "b"]}),
    ("lfm2", "a keyword", lfm("from=1, **{'days': 2}"), {"from": 1, "days": 2}),
    ("lfm2", "quotes in quotes", lfm("command='sed -n '1,9p' f.py'"), {"command": "sed -n '1,9p' f.py"}),
    ("lfm2", "zeros", lfm("days=07"), {"days": 7}),
    ("lfm2", "JSON's words", lfm("place={'a': true, \"b\": None}"), {"place": {"a": True, "b": None}}),
    ("lfm2", "no names", lfm("'Paris', days=2"), {"city": "Paris", "days": 2}),
    ("lfm2", "a blank", lfm("days=1").replace("[", " [", 1), {"days": 1}),
    # JSON for Python: https://github.com/vllm-project/vllm/pull/46890
    ("pythonic", "JSON", '{"type": "function", "name": "f", "parameters": {"days": 1}}', {"days": 1}),
    ("lfm2", "JSON", '<|tool_call_start|>[{"name": "f", "arguments": {"days": 1}}]<|tool_call_end|>', {"days": 1}),
    # Marks in the singular, and left out: https://github.com/ggml-org/llama.cpp/pull/17376, vllm #32216
    (
        "kimi_k2",
        "singular",
        '<|tool_call_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"days": 1}'
        "<|tool_call_end|><|tool_call_section_end|>",
        {"days": 1},
    ),
    ("kimi_k2", "no section", '<|tool_call_begin|>f:0<|tool_call_argument_begin|>\n{"days": 1}\n<|tool_call_end|>', {"days": 1}),
    # OpenAI's own object
    (
        "hermes",
        "OpenAI's",
        '<tool_call>{"type": "function", "function": {"name": "f", "arguments": {"days": 1}}}</tool_call>',
        {"days": 1},
    ),
    ("hermes", "function", '<tool_call>{"function": "f", "arguments": {"days": 1}}</tool_call>', {"days": 1}),
    ("nemotron", "no list", '<TOOLCALL>{"name": "f", "arguments": {"days": 1}}</TOOLCALL>', {"days": 1}),
    # A parameter's tag, or the mark before a tag, left out: https://github.com/vllm-project/vllm/pull/51075, MiniMax-M3 #31
    (
        "minimax_m3",
        "no tag",
        minimax('%<tool_call>\n%<invoke name="f">%x%</city>%<days>2%</days>%</invoke>\n%</tool_call>'),
        {"city": "x", "days": 2},
    ),
    ("minimax_m3", "no tag", minimax('%<tool_call>\n%<invoke name="f">x%</city>%</invoke>\n%</tool_call>'), {"city": "x"}),
    (
        "minimax_m3",
        "no mark",
        minimax('%<tool_call>%<invoke name="f">%<city>x</city>%<days>2</days>%</invoke>%'),
        {"city": "x", "days": 2},
    ),
    ("minimax_m3", "no mark", minimax('<tool_call>\n<invoke name="f">%<city>x%</city>%</invoke>%</tool_call>'), {"city": "x"}),
    (
        "minimax_m3",
        "marks",
        minimax('%<tool_call>%<invoke name="f">%<command>a </command> %</tool_call> b%</command>%</invoke>%</tool_call>'),
        {"command": minimax("a </command> %</tool_call> b")},
    ),
    (
        "minimax_m3",
        "tags in tags",
        minimax(
            '%<tool_call>%<invoke name="f">%<place>%<city>x%</city>%<place>%<n>1%</n>%</place>%<l>%<item>1%</item>%<item>%</item>'
            "%</l>%</place>%<tags>%<item>a%</item>%<item> 2%</item>%</tags>%</invoke>%</tool_call>"
        ),
        {"place": {"city": "x", "place": {"n": 1}, "l": [1, ""]}, "tags": ["a", " 2"]},
    ),
    # A mark written twice: https://github.com/sgl-project/sglang (dots), as others have seen it live
    ("dots", "twice", '<dots_function_call><dots_function_call>\n<invoke name="f"> </invoke>\n</dots_function_call>', {}),
    ("hermes", "twice", '<tool_call>\n<tool_call>{"name": "f", "arguments": {"days": 1}}</tool_call>', {"days": 1}),
    ("glm45", "twice", f"<tool_call>{glm('days', '1')}", {"days": 1}),
    # Texts in backquotes: https://github.com/ollama/ollama/issues/15315
    (
        "gemma4",
        "backquotes",
        "<|tool_call>call:f{command:`.a {\n  b: c, d;\n}`,days:1}<tool_call|>",
        {"command": ".a {\n  b: c, d;\n}", "days": 1},
    ),
    # All parameters in one, as Python has them, and a section: vLLM, tests/tool_parsers/test_minicpm5xml_tool_parser.py
    ("minicpm5", "all in one", "<function name=\"f\"><param name=\"properties\">{'city': '5'}</param></function>", {"city": "5"}),
    (
        "minicpm5",
        "a section",
        '<function name="f"><param name="city"><![CDATA[a\n</param> <b>]]></param><param name="days">2</param></function>',
        {"city": "a\n</param> <b>", "days": 2},
    ),
    # Other dialects of one template: SGLang, python/sglang/srt/function_call/k2_v3_detector.py
    (
        "k2_horizon",
        "JSON",
        '<ifm|tool_calls>\n<ifm|tool_call>{"name": "f", "arguments": {"days": 1}}</ifm|tool_call>\n</ifm|tool_calls>',
        {"days": 1},
    ),
    (
        "k2_horizon",
        "types",
        "<ifm|tool_calls>\n<ifm|tool_call>f\n<ifm|arg_key>city</ifm|arg_key>\n<ifm|arg_type>string</ifm|arg_type>\n"
        "<ifm|arg_value>3</ifm|arg_value>\n</ifm|tool_call>\n</ifm|tool_calls>",
        {"city": "3"},
    ),
    (
        "kimi_k3",
        "all in one",
        xtml('[tools][call tool="f" index="1"][json type="object"]{"days": 1}[/json][/call][/tools]'),
        {"days": 1},
    ),
    (
        "kimi_k3",
        "escapes",
        xtml('[tools][call tool="f" index="1"][argument key="a&quot;&amp;b" type="number"]1[/argument][/call][/tools]'),
        {'a"&b': 1},
    ),
    ("apertus", "names", '<|tools_prefix|>[{"name": "f", "arguments": {"days": 1}}]<|tools_suffix|>', {"days": 1}),
    ("longcat_tags", "JSON", '<longcat_tool_call>{"name": "f", "arguments": {"days": 1}}</longcat_tool_call>', {"days": 1}),
    ("granite_20b_fc", "an end", '<function_call> {"name": "f", "arguments": {"days": 1}}</function_call>', {"days": 1}),
    ("xlam", "marks", '<tool_call>[{"name": "f", "arguments": {"days": 1}}]</tool_call>', {"days": 1}),
    ("internlm", "a blank", '<|action_start|> <|plugin|>\n{"name": "f", "parameters": {"days": 1}}<|action_end|>', {"days": 1}),
    (
        "step3",
        "no word",
        step(
            '<|tool_calls_begin|><|tool_call_begin|><steptml:invoke name="f"></steptml:invoke><|tool_call_end|><|tool_calls_end|>'
        ),
        {},
    ),
    # Calls without parameters: https://github.com/vllm-project/vllm/pull/41654, vllm #28806
    ("glm47", "none", "<tool_call>f</tool_call>", {}),
    ("minimax_m2", "none", '<minimax:tool_call><invoke name="f"></invoke></minimax:tool_call>', {}),
]


@pytest.mark.parametrize(
    ("form", "text", "arguments"),
    [(form, text, said) for form, _, text, said in REPORTS],
    ids=[f"{form}, {what}" for form, what, *_ in REPORTS],
)
def test_what_models_were_seen_to_write_is_understood(form: str, text: str, arguments: dict[str, Any]) -> None:
    for size in (1, 3, 1000):
        found = message(form, f"Well. {text}" if form != "pythonic" else text, size)
        (call,) = found["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("f", arguments)
        assert found["content"] == (None if form == "pythonic" else "Well.")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        # https://github.com/vllm-project/vllm/issues/47901
        ("hunyuan", '<tool_calls>[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"days": 1}}]</tool_calls>'),
        ("xlam", '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"days": 1}}]'),
        ("apertus", '<|tools_prefix|>[{"f": {}, "f": {"days": 1}}]<|tools_suffix|>'),
        (
            "step3",
            step(
                '<|tool_calls_begin|><|tool_call_begin|><steptml:invoke name="f"></steptml:invoke><|tool_call_end|><|tool_sep|>'
                '<|tool_call_begin|><steptml:invoke name="f"><steptml:parameter name="days">1</steptml:parameter>'
                "</steptml:invoke><|tool_call_end|><|tool_calls_end|>"
            ),
        ),
    ],
)
def test_a_call_behind_one_without_arguments_has_its_own(form: str, text: str) -> None:
    for size in (1, 7, 1000):
        found = message(form, text, size)
        assert [json.loads(call["function"]["arguments"]) for call in found["tool_calls"]] == [{}, {"days": 1}]
        assert found["content"] is None


def message(form: str, text: str, size: int) -> dict[str, Any]:
    stream = AnswerStream(None, CallReading(form=TOOL_FORMATS[form], schemas={"f": SCHEMA}))
    said = [item for at in range(0, len(text), size) for item in stream.feed(text[at : at + size])]
    return message_of([*said, *stream.finish()])


def test_a_text_is_told_while_it_is_written_in_tags() -> None:
    """https://github.com/sgl-project/sglang/issues/11888, https://github.com/vllm-project/vllm/pull/42879"""
    for form, begun in (
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=command>\n"),
        ("glm45", "<tool_call>f\n<arg_key>command</arg_key>\n<arg_value>"),
        ("deepseek_v4", dsml('<%tool_calls>\n<%invoke name="f">\n<%parameter name="command" string="true">')),
    ):
        stream = AnswerStream(None, CallReading(form=TOOL_FORMATS[form], schemas={"f": SCHEMA}))
        stream.feed(begun)
        assert [len(stream.feed("word ")) for _ in range(20)].count(1) >= 19


def test_an_answer_that_ends_behind_a_value_has_that_value() -> None:
    for text in ("<tool_call><function=f><parameter=city>x</parameter>", "<tool_call><function=f><parameter=days>2</parameter>"):
        for size in (1, 1000):
            (call,) = message("qwen3_coder", text, size)["tool_calls"]
            assert json.loads(call["function"]["arguments"] + "}") in ({"city": "x"}, {"days": 2})


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (qwen("<parameter=city>\n\n\n</parameter>\n"), {"city": "\n"}),
        (qwen("<parameter=note>\n<parameter=city>\nx\n</parameter>\n"), {"note": "", "city": "x"}),
        (qwen("<parameter=command>\n<parameter=city>\nx\n</parameter>\n"), {"command": "", "city": "x"}),
        (qwen("<parameter=command>\n\n<parameter>\n</parameter>\n"), {"command": "\n<parameter>"}),
    ],
)
def test_line_breaks_at_the_ends_of_a_value_are_its_tags_however_it_is_cut(text: str, arguments: dict[str, Any]) -> None:
    for size in (1, 2, 3, 1000):
        (call,) = message("qwen3_coder", text, size)["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == arguments


def test_a_value_that_is_json_has_ended_whatever_follows() -> None:
    text = qwen('<parameter=place>\n{"a": 1}\n</parameter>\n').replace("</function>", "</functon>")
    for size in (1, 1000):
        found = message("qwen3_coder", text, size)
        assert json.loads(found["tool_calls"][0]["function"]["arguments"]) == {"place": {"a": 1}}
        assert "functon" in found["content"]


def test_marks_within_a_long_value_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a model write them by the thousand would hold up the answers of others."""
    looks: list[str] = []

    def counted(text: str) -> bool:
        looks.append(text)
        return is_json(text)

    monkeypatch.setattr(tag_scanners, "is_json", counted)
    tags = ["a </parameter> b"] * 300
    text = qwen(f"<parameter=tags>\n{json.dumps(tags)}\n</parameter>\n")
    stream = AnswerStream(None, CallReading(form=TOOL_FORMATS["qwen3_coder"], schemas={"f": SCHEMA}))
    said = [part for begin in range(0, len(text), 4) for part in stream.feed(text[begin : begin + 4])] + stream.finish()
    assert json.loads("".join(part.text for part in said if isinstance(part, Arguments))) == {"tags": tags}
    assert len(looks) < 3 * len(tags)
