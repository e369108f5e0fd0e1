"""Answers bound to calls: whatever a model would write, what is told obeys the tools' schemas."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nereid.llm.structure import StructureFactory
from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.call_forms import CallReading
from nereid.serving.gateway.chat_answers import message_of
from nereid.serving.gateway.grammar_parts import LONGEST_GRAMMAR, NotBindableError, TooLongError
from nereid.serving.gateway.thoughts import Thinking
from nereid.serving.gateway.tool_formats import TOOL_FORMATS
from nereid.serving.gateway.tool_grammars import AnswerForm

from calling_answers import REAL_MARKS, WRITTEN, minimax, step, xtml
from template_families import deepseek, dsml

END = "<eos>"
SCHEMAS: dict[str, dict[str, Any]] = {
    "warmth": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Łódź", 'a "b"'], "type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "unit": {"$ref": "#/$defs/unit"},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
        "$defs": {
            "unit": {"type": "object", "properties": {"c": {"type": "boolean"}}, "required": ["c"], "additionalProperties": False}
        },
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
MARKS = ["<think>", "</think>", *dict.fromkeys(mark for form in TOOL_FORMATS.values() for mark in form.marks)]
MARKS = [mark for mark in MARKS if not any(part in mark for part in (*REAL_MARKS, "><", 'name="', "functools"))]
MARKS += ["<|start|>", "<|constrain|>", "<|end|>", "<|action_start|>", "<|plugin|>", "<arg_value>", "</arg_value>", *REAL_MARKS]


def factory(kind: str) -> tuple[Tokenizer, StructureFactory, dict[str, int]]:
    """One token a byte, and the marks as special tokens, as added ones, or as none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END])
    if kind != "letters":
        made.add_tokens([AddedToken(mark, special=kind == "special") for mark in MARKS])
    known = LLTokenizer(made.to_str(), n_vocab=made.get_vocab_size(), eos_token=[made.token_to_id(END)])
    tokens = {mark: made.token_to_id(mark) for mark in MARKS} if kind != "letters" else {}
    return made, StructureFactory(known, made.get_vocab_size()), tokens


@pytest.fixture(scope="module", params=["special", "added", "letters"])
def parts(request: pytest.FixtureRequest) -> tuple[Tokenizer, StructureFactory, dict[str, int]]:
    return factory(request.param)


def drawn(parts: tuple[Tokenizer, StructureFactory, dict[str, int]], grammar: str, seed: int, most: int = 1500) -> str | None:
    """What a model with no idea at all writes; None where it did not come to an end."""
    tokenizer, structures, _ = parts
    structure = structures.compile("grammar", grammar)
    chance, tokens = random.Random(seed), []
    end = tokenizer.token_to_id(END)
    for _ in range(most):
        allowed = np.flatnonzero(structure.allowed())
        if end in allowed and chance.random() < 0.3:
            break
        token = int(chance.choice(allowed))
        if token == end or structure.take(token):
            tokens += [token] if token != end else []
            break
        tokens.append(token)
    else:
        return None
    return str(tokenizer.decode(tokens, skip_special_tokens=False))


def message(text: str, reading: CallReading | None, thinking: Thinking | None = None) -> dict[str, Any]:
    made = AnswerStream(thinking, reading)
    return message_of([*made.feed(text), *made.finish()])


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_whatever_is_drawn_its_calls_obey_their_schemas(parts: Any, form: str) -> None:
    for several in (True, False):
        reading = CallReading(form=TOOL_FORMATS[form], schemas=SCHEMAS, several=several)
        grammar = AnswerForm(calls=reading, called=True, tokens=parts[2]).grammar()
        counts: list[int] = []
        for seed in range(12):
            if seed > 3 and (not several or max(counts) > 1):
                break
            text = drawn(parts, grammar, seed)
            assert text is not None
            found = message(text, CallReading(form=TOOL_FORMATS[form], schemas=SCHEMAS))
            assert found["content"] is None, text
            for call in found["tool_calls"]:
                function = call["function"]
                jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])
            counts.append(len(found["tool_calls"]))
        assert (max(counts) > 1) is several


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_a_template_s_own_way_of_writing_is_allowed(parts: Any, form: str) -> None:
    written = WRITTEN[form]
    reading = CallReading(form=TOOL_FORMATS[form], schemas=SCHEMAS)
    for called in (True, False):
        assert takes(parts, AnswerForm(calls=reading, called=called, tokens=parts[2]), written)
    before, after = ("<|channel|>commentary<|message|>", "<|end|><|start|>assistant") if form == "harmony" else ("", "\n")
    if form not in ("llama3_json", "pythonic", "xlam"):
        assert takes(parts, AnswerForm(calls=reading, tokens=parts[2]), f"{before}Let me see.{after}{written}")
        assert not takes(parts, AnswerForm(calls=reading, called=True, tokens=parts[2]), f"{before}Let me see.{after}{written}")
    text = "<|channel|>final<|message|>Nothing to call." if form == "harmony" else "Nothing to call."
    assert takes(parts, AnswerForm(calls=reading, tokens=parts[2]), text)
    assert not takes(parts, AnswerForm(calls=reading, called=True, tokens=parts[2]), text)


def takes(parts: Any, form: AnswerForm, text: str) -> bool:
    """Whether the grammar allows this answer, as the tokenizer would write it."""
    tokenizer, structures, _ = parts
    structure = structures.compile("grammar", form.grammar())
    for token in tokenizer.encode(text, add_special_tokens=False).ids:
        if not structure.allowed()[token]:
            return False
        structure.take(token)
    return bool(structure.matcher.is_accepting())


TEXTS = {
    "qwen3_coder": ("<tool_call>\n<function=f>\n<parameter=text>\n", "\n</parameter>\n</function>\n</tool_call>"),
    "glm45": ("<tool_call>f\n<arg_key>text</arg_key>\n<arg_value>", "</arg_value>\n</tool_call>"),
    "glm47": ("<tool_call>f<arg_key>text</arg_key><arg_value>", "</arg_value></tool_call>"),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="text">',
        "</parameter>\n</invoke>\n</minimax:tool_call>",
    ),
    "deepseek_v32": (
        dsml('<%function_calls>\n<%invoke name="f">\n<%parameter name="text" string="true">'),
        dsml("</%parameter>\n</%invoke>\n</%function_calls>"),
    ),
    "gemma4": ('<|tool_call>call:f{text:<|"|>', '<|"|>}<tool_call|>'),
    "longcat_tags": (
        "<longcat_tool_call>f\n<longcat_arg_key>text</longcat_arg_key>\n<longcat_arg_value>",
        "</longcat_arg_value>\n</longcat_tool_call>",
    ),
    "solar_open2": (
        "<|tool_call:start|>f\n<|tool_arg:start|>text<|tool_arg:value|>",
        "<|tool_arg:end|>\n<|tool_call:end|>",
    ),
    "minicpm5": ('<function name="f"><param name="text">', "</param></function>"),
    "hy3": (
        "<tool_calls>\n<tool_call>f<tool_sep>\n<arg_key>text</arg_key>\n<arg_value>",
        "</arg_value>\n</tool_call>\n</tool_calls>",
    ),
    "k2_horizon": (
        "<ifm|tool_calls>\n<ifm|tool_call>f\n<ifm|arg_key>text</ifm|arg_key>\n<ifm|arg_value>",
        "</ifm|arg_value>\n</ifm|tool_call>\n</ifm|tool_calls>",
    ),
    "minimax_m3": (minimax('%<tool_call>\n%<invoke name="f">%<text>'), minimax("%</text>%</invoke>\n%</tool_call>")),
    "step3": (
        step(
            '<|tool_calls_begin|>\n<|tool_call_begin|>function<|tool_sep|><steptml:invoke name="f">\n'
            '<steptml:parameter name="text">'
        ),
        step("</steptml:parameter>\n</steptml:invoke><|tool_call_end|>\n<|tool_calls_end|>"),
    ),
    "kimi_k3": (
        xtml('[tools][call tool="f" index="1"][argument key="text" type="string"]'),
        xtml("[/argument][/call][/tools]"),
    ),
    "functiongemma": ("<start_function_call>call:f{text:<escape>", "<escape>}<end_function_call>"),
}


@pytest.mark.parametrize(
    "text", ["x", "", " a <b>\n\n", "if a < b && c </p> {\n", '"quoted", \\n', "<", "</", "</parameter", "Ł}]"]
)
@pytest.mark.parametrize("form", TEXTS)
def test_a_text_stands_as_it_is_and_comes_back_so(parts: Any, form: str, text: str) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    reading = CallReading(form=TOOL_FORMATS[form], schemas={"f": schema})
    begin, end = TEXTS[form]
    assert takes(parts, AnswerForm(calls=reading, called=True, tokens=parts[2]), f"{begin}{text}{end}")
    (call,) = message(f"{begin}{text}{end}", reading)["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"text": text}
    assert not takes(parts, AnswerForm(calls=reading, called=True, tokens=parts[2]), f"{begin}{text}{end}{end}")


NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Łódź", "Rom"]},
                "at": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 1, "maxItems": 3},
                "odd": {"type": ["boolean", "null"]},
            },
            "required": ["at"],
            "additionalProperties": False,
        },
        "rows": {
            "type": "array",
            "items": {"type": "object", "properties": {"b": {"type": "boolean"}}, "additionalProperties": False},
            "maxItems": 3,
        },
        "free": {"$ref": "#/$defs/free"},
        "kept": {"type": "string", "pattern": "^[a-c]{1,3}$"},
    },
    "required": ["place", "rows"],
    "additionalProperties": False,
    "$defs": {"free": {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}},
}


def test_objects_and_lists_are_bound_as_tags_in_tags(parts: Any) -> None:
    reading = CallReading(form=TOOL_FORMATS["minimax_m3"], schemas={"f": NESTED})
    form = AnswerForm(calls=reading, called=True, tokens=parts[2])
    for inside, given in (
        (
            "%<place>%<city>Rom%</city>%<at>%<item>4%</item>%<item>5%</item>%</at>%</place>%<rows>%<item>%<b>true%</b>%</item>%</rows>"
            '%<free>{"n": 2}%</free>',
            {"place": {"city": "Rom", "at": [4, 5]}, "rows": [{"b": True}], "free": {"n": 2}},
        ),
        (
            '%<place>%<at>%<item>0%</item>%</at>%<odd>null%</odd>%</place>%<rows>%</rows>%<kept>"ab"%</kept>',
            {"place": {"at": [0], "odd": None}, "rows": [], "kept": "ab"},
        ),
        ("%<place>%<at>%</at>%</place>%<rows>%</rows>", None),
        ("%<place>%<city>Bonn%</city>%<at>%<item>0%</item>%</at>%</place>%<rows>%</rows>", None),
        ("%<place>%<at>%<item>0%</item>%</at>%</place>", None),
    ):
        text = minimax(f'%<tool_call>\n%<invoke name="f">{inside}%</invoke>\n%</tool_call>')
        assert takes(parts, form, text) is (given is not None), inside
        if given is not None:
            (call,) = message(text, reading)["tool_calls"]
            assert json.loads(call["function"]["arguments"]) == given


@pytest.mark.parametrize("form", ["minimax_m3", "kimi_k3", "apertus"])
def test_what_is_drawn_of_nested_schemas_obeys_them(parts: Any, form: str) -> None:
    reading = CallReading(form=TOOL_FORMATS[form], schemas={"f": NESTED}, several=False)
    grammar = AnswerForm(calls=reading, called=True, tokens=parts[2]).grammar()
    for seed in range(4):
        text = drawn(parts, grammar, seed)
        assert text is not None
        found = message(text, reading)
        assert found["content"] is None, text
        for call in found["tool_calls"]:
            jsonschema.validate(json.loads(call["function"]["arguments"]), NESTED)


def test_types_that_tags_tell_are_those_of_the_schema(parts: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, 'b"&c': {"type": ["string", "null"]}}}
    reading = CallReading(form=TOOL_FORMATS["kimi_k3"], schemas={"f": schema})
    form = AnswerForm(calls=reading, called=True, tokens=parts[2])
    for inside, given in (
        ('[argument key="a" type="number"]1[/argument]', {"a": 1}),
        ('[argument key="a" type="object"]1[/argument]', None),
        ('[argument key="a" type="number"]1.5[/argument]', None),
        ('[argument key="b&quot;&amp;c" type="null"]null[/argument]', {'b"&c': None}),
        ('[argument key="b&quot;&amp;c" type="object"]"x"[/argument]', {'b"&c': "x"}),
    ):
        for before in ("", "[response][/response]", "[/response]"):
            text = xtml(f'{before}[tools][call tool="f" index="7"]{inside}[/call][/tools]')
            assert takes(parts, form, text) is (given is not None), text
            if given is not None:
                found = message(text, reading)
                assert json.loads(found["tool_calls"][0]["function"]["arguments"]) == given
                assert found["content"] is None


def test_a_call_in_the_midst_of_text_obeys_its_schema_where_that_is_strict(parts: Any) -> None:
    reading = CallReading(form=TOOL_FORMATS["hermes"], schemas=SCHEMAS)
    form = AnswerForm(calls=reading, tokens=parts[2])
    begun = 'Well.\n<tool_call>\n{"name": "warmth", "arguments": {"city": '
    assert not takes(parts, form, begun + '"Paris", "unit": {"c": true}}}\n</tool_call>')
    assert takes(parts, form, begun + '"Łódź", "unit": {"c": true}}}\n</tool_call> Done.')


def test_a_call_obeys_its_schema_also_where_models_write_it_otherwise(parts: Any) -> None:
    for form, begun, ended in (
        ("llama3_json", 'Well.\n\n{"name": "warmth", "parameters": {"city": "%s", "unit": {"c": true}}}', ""),
        ("granite", '<tool_call>[{"name": "warmth", "arguments": {"city": "%s", "unit": {"c": true}}}]', ""),
        ("qwen3_coder", "Well.\n<function=warmth>\n<parameter=city>\n%s\n</parameter>\n<parameter=unit>\n", '{"c": true}\n'),
    ):
        end = "</parameter>\n</function>\n</tool_call>" if form == "qwen3_coder" else ""
        bound = AnswerForm(calls=CallReading(form=TOOL_FORMATS[form], schemas=SCHEMAS), tokens=parts[2])
        assert not takes(parts, bound, begun % "Paris" + ended + end)
        assert takes(parts, bound, begun % "Łódź" + ended + end) is (form != "llama3_json")


@pytest.mark.parametrize("form", ["deepseek_v3", "deepseek_v31"])
def test_a_call_obeys_its_schema_also_without_the_mark_before_all_calls(parts: Any, form: str) -> None:
    bound = AnswerForm(calls=CallReading(form=TOOL_FORMATS[form], schemas=SCHEMAS), tokens=parts[2])
    begins, ends = ("function<|tool_sep|>warmth\n```json\n", "\n```") if form == "deepseek_v3" else ("warmth<|tool_sep|>", "")
    for city in ("Łódź", "Paris"):
        call = f'{begins}{{"city":"{city}","unit":{{"c":true}}}}{ends}'
        text = deepseek(f"Well.\n<|tool_call_begin|>{call}<|tool_call_end|><|tool_calls_end|>")
        assert takes(parts, bound, text) is (city == "Łódź")


def test_channels_are_bound(parts: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    marks = Thinking("<|message|>", "<|end|>", channels=True)
    opened = Thinking("<|message|>", "<|end|>", channels=True, opened=True)
    calls = CallReading(form=TOOL_FORMATS["harmony"], schemas=SCHEMAS)
    thoughts = '<|channel|>analysis<|message|>so {"b"}<|end|><|start|>assistant'
    call = '<|channel|>commentary to=functions.warmth <|constrain|>json<|message|>{"city":"Łódź","unit":{"c":true}}'
    final = "<|channel|>final<|message|>"
    json_alone = AnswerForm(thinking=marks, schema=schema, tokens=parts[2])
    must_call = AnswerForm(thinking=marks, calls=calls, called=True, tokens=parts[2])
    strict = AnswerForm(thinking=marks, calls=calls, tokens=parts[2])
    unthinking = AnswerForm(calls=calls, called=True, tokens=parts[2])
    either = AnswerForm(thinking=marks, calls=calls, schema=schema, tokens=parts[2])
    goes_on = AnswerForm(thinking=opened, calls=calls, tokens=parts[2])
    for form, text, taken in (
        (json_alone, f'{thoughts}{thoughts}{final}{{"a":1}}', True),
        (json_alone, '<|channel|>final <|constrain|>json<|message|>{"a":1}', True),
        (json_alone, f'{thoughts}{final}{{"b":1}}', False),
        (must_call, thoughts + call, True),
        (must_call, f"{thoughts}{final}Warm.", False),
        (must_call, thoughts + call.replace("Łódź", "Paris"), False),
        (unthinking, call, True),
        (unthinking, thoughts + call, False),
        (strict, f"{thoughts}{final}Warm.", True),
        (strict, f"{thoughts}{final}Well.<|end|><|start|>assistant{call}", True),
        (strict, thoughts + call.replace("Łódź", "Paris"), False),
        (either, f'{thoughts}{final}{{"a":1}}', True),
        (either, thoughts + call, True),
        (either, f"{thoughts}{final}Warm.", False),
        (goes_on, "and so on", True),
        (goes_on, f"and so on<|end|><|start|>assistant{call}", True),
        (AnswerForm(thinking=opened, schema=schema, tokens=parts[2]), '{"a":1}', True),
    ):
        assert takes(parts, form, text) is taken, text


def test_thoughts_come_before_what_is_bound(parts: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    marks = Thinking("<think>", "</think>")
    opened = Thinking("<think>", "</think>", opened=True)
    free = AnswerForm(thinking=marks, schema=schema, tokens=parts[2])
    within = AnswerForm(thinking=opened, schema=schema, tokens=parts[2])
    assert takes(parts, free, '{"a":1}')
    assert takes(parts, free, '<think>\nso {"b"}\n</think>\n\n{"a":1}')
    assert not takes(parts, free, '<think>\nso\n</think>\n\n{"b":1}')
    assert takes(parts, within, 'so {"b"}\n</think>\n\n{"a":1}')
    assert not takes(parts, within, '{"a":1}')


def test_text_of_a_schema_or_a_call(parts: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    form = AnswerForm(calls=CallReading(form=TOOL_FORMATS["hermes"], schemas=SCHEMAS), schema=schema, tokens=parts[2])
    assert takes(parts, form, '{"a":1}')
    assert takes(parts, form, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not takes(parts, form, "Well")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "anyOf": [{}]}, "anyOf cannot be bound"),
        ({"type": "object", "required": ["x"]}, "'x' is none of its properties"),
        ({"type": "object", "properties": {"a>b": {}}}, "'a>b' cannot be the name of a tag"),
    ],
)
def test_what_tags_cannot_be_bound_to_is_refused(schema: dict[str, Any], words: str) -> None:
    form = AnswerForm(calls=CallReading(form=TOOL_FORMATS["qwen3_coder"], schemas={"f": schema}), called=True)
    with pytest.raises(NotBindableError, match=words):
        form.grammar()


def test_what_arguments_of_a_call_cannot_be_bound_to_is_refused() -> None:
    for form in ("lfm2", "gemma4"):
        for schema, words in (
            ({"type": "object", "properties": {"a b": {}}}, "'a b' cannot be the name of an argument"),
            ({"type": "object", "oneOf": [{}]}, "oneOf cannot be bound"),
        ):
            bound = AnswerForm(calls=CallReading(form=TOOL_FORMATS[form], schemas={"f": schema}), called=True)
            with pytest.raises(NotBindableError, match=words):
                bound.grammar()


@pytest.mark.parametrize("form", ["qwen3_coder", "minimax_m3", "lfm2", "gemma4"])
@pytest.mark.parametrize("apart", [False, True])
def test_definitions_that_go_along_with_too_many_parameters_are_not_written_out(form: str, apart: bool) -> None:
    """All together would be two megabytes."""
    many = {f"a{i}": {"$ref": "#/$defs/x"} for i in range(200)}
    properties = {"all": {"type": "object", "properties": many}} if apart else many
    schema = {"type": "object", "properties": properties, "$defs": {"x": {"enum": [str(i) for i in range(1000)]}}}
    bound = AnswerForm(calls=CallReading(form=TOOL_FORMATS[form], schemas={"f": schema}), called=True)
    if apart and form != "minimax_m3":  # the object is one value
        assert len(bound.grammar()) < LONGEST_GRAMMAR
        return
    with pytest.raises(TooLongError):
        bound.grammar()


def test_arguments_that_are_not_required_may_be_left_out(parts: Any) -> None:
    number = {"type": "integer"}
    schema = {"type": "object", "properties": {"a": number, "b": number, "c": number}, "required": ["b"]}
    for form, whole, equals, comma in (
        ("lfm2", "<|tool_call_start|>[f(%s)]<|tool_call_end|>", "=", ", "),
        ("gemma4", "<|tool_call>call:f{%s}<tool_call|>", ":", ","),
    ):
        bound = AnswerForm(calls=CallReading(form=TOOL_FORMATS[form], schemas={"f": schema}), called=True, tokens=parts[2])
        for given, taken in (("abc", True), ("b", True), ("ab", True), ("bc", True), ("ac", False), ("", False), ("ba", False)):
            text = whole % comma.join(f"{name}{equals}1" for name in given)
            assert takes(parts, bound, text) is taken, text
        assert not takes(parts, bound, whole % f"{comma}b{equals}1")
