"""Schemas of tools that made whole requests fail at other servers, each from a public report: taken, bound, and read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nereid.llm.structure import StructureFactory
from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.call_forms import CallReading
from nereid.serving.gateway.chat_answers import message_of
from nereid.serving.gateway.grammar_parts import NotBindableError
from nereid.serving.gateway.tool_formats import TOOL_FORMATS
from nereid.serving.gateway.tool_grammars import AnswerForm

from calling_model import ASK, CHAT, Model, write
from gateway_before import gateway
from template_families import FAMILIES

__all__ = ["Model"]

RESPONSES = "/v1/responses"


@pytest.fixture(scope="module")
def structures() -> StructureFactory:
    """One token a byte, so that marks are letters."""
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    known = LLTokenizer(made.to_str(), n_vocab=made.get_vocab_size(), eos_token=[made.token_to_id("<eos>")])
    return StructureFactory(known, made.get_vocab_size())


@pytest.fixture
def model() -> Model:
    return Model("Well.")


@pytest.fixture
def api(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    repository = write(tmp_path, FAMILIES["hermes"])
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def holding(**inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": inner}, "required": ["x"]}


TREE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "one": {"type": "object", "properties": {"x": {"anyOf": [{"type": "null"}, {"type": "integer"}]}}, "required": ["x"]},
        "other": {"$ref": "#/properties/one"},
        "number": {"$ref": "#/properties/one/properties/x/anyOf/1"},
    },
    "required": ["other"],
}
SCHEMAS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # https://github.com/modelcontextprotocol/typescript-sdk/pull/1082, https://github.com/ggml-org/llama.cpp/issues/16790
    (TREE, {"other": {"x": 1}, "number": 5}, {"other": {"x": "a"}, "number": 5}),
    (TREE, {"other": {"x": None}}, {"other": {"x": None}, "number": None}),
    ({**holding(**{"$ref": "#"}), "required": []}, {"x": {"x": {}}}, {"x": {"x": 1}}),
    ({**holding(**{"$ref": "#/$defs/a~1b"}), "$defs": {"a/b": {"type": "integer"}}}, {"x": 1}, {"x": "a"}),
    # https://github.com/vega/ts-json-schema-generator/issues/273
    ({**holding(**{"$ref": "#/$defs/R[int]"}), "$defs": {"R[int]": {"type": "integer"}}}, {"x": 1}, {"x": "a"}),
    # https://github.com/mastra-ai/mastra/issues/19273
    (
        holding(type="object", propertyNames={"type": "string"}, additionalProperties={"type": "integer"}),
        {"x": {"a": 1}},
        {"x": {"a": "b"}},
    ),
    ({**holding(type="integer"), "propertyNames": {"type": "string"}, "$comment": "-", "x-own": 1}, {"x": 1}, {"x": "a"}),
    # https://github.com/cloudflare/mcp-server-cloudflare/issues/391
    (holding(anyOf=[{"not": {}}, {"type": "integer"}]), {"x": 1}, {"x": None}),
    # https://github.com/sinclairzx81/typebox/issues/1165, https://github.com/Dokploy/mcp/issues/74: of older drafts
    (
        holding(type="array", items=[{"type": "integer"}, {"type": "null"}], additionalItems=False),
        {"x": [1, None]},
        {"x": [None, 1]},
    ),
    (holding(type="integer", minimum=0, exclusiveMinimum=True), {"x": 1}, {"x": 0}),
]
FORMS = ("hermes", "qwen3_coder", "lfm2")


def written(form: str, given: dict[str, Any]) -> str:
    """A call as a model writes it."""
    values = {name: json.dumps(value) for name, value in given.items()}
    if form == "hermes":
        return f'<tool_call>\n{{"name": "f", "arguments": {json.dumps(given)}}}\n</tool_call>'
    if form == "lfm2":
        return f"<|tool_call_start|>[f({', '.join(f'{name}={value}' for name, value in values.items())})]<|tool_call_end|>"
    inside = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
    return f"<tool_call>\n<function=f>\n{inside}</function>\n</tool_call>"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS, ids=lambda value: json.dumps(value)[:60])
def test_arguments_are_bound_and_read_by_schemas_as_authors_write_them(
    structures: StructureFactory, form: str, schema: dict[str, Any], good: dict[str, Any], bad: dict[str, Any]
) -> None:
    reading = CallReading(form=TOOL_FORMATS[form], schemas={"f": schema})
    grammar = AnswerForm(calls=reading, called=True).grammar()

    def taken(text: str) -> bool:
        matcher = structures.compile("grammar", grammar).matcher
        tokens = structures.tokenizer.tokenize_str(text)
        return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())

    text = written(form, good)
    assert taken(text)
    assert not taken(written(form, bad))
    stream = AnswerStream(None, reading)
    (call,) = message_of([*stream.feed(text), *stream.finish()])["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == good


def test_a_value_is_of_the_type_that_a_reference_leads_to() -> None:
    """A text of digits stays one, whatever list or escape the reference passes."""
    schema = {
        "type": "object",
        "properties": {"a": {"anyOf": [{"type": "null"}, {"type": "string"}]}, "x": {"$ref": "#/properties/a/anyOf/1"}},
    }
    escaped = {**holding(**{"$ref": "#/$defs/a~1b%20c"}), "$defs": {"a/b c": {"type": "string"}}}
    for given in (schema, escaped):
        stream = AnswerStream(None, CallReading(form=TOOL_FORMATS["qwen3_coder"], schemas={"f": given}))
        said = [*stream.feed(written("qwen3_coder", {"x": 12})), *stream.finish()]
        assert json.loads(message_of(said)["tool_calls"][0]["function"]["arguments"]) == {"x": "12"}


@pytest.mark.parametrize("more", [{"format": "password"}, {"deprecated": True}, {"$comment": "-", "writeOnly": True}], ids=str)
def test_a_text_that_nothing_binds_stands_in_its_tag_as_it_is(structures: StructureFactory, more: dict[str, Any]) -> None:
    """https://github.com/zaggino/z-schema/issues/121"""
    reading = CallReading(form=TOOL_FORMATS["qwen3_coder"], schemas={"f": holding(type="string", **more)})
    text = "<tool_call>\n<function=f>\n<parameter=x>\na b\n</parameter>\n</function>\n</tool_call>"
    matcher = structures.compile("grammar", AnswerForm(calls=reading, called=True).grammar()).matcher
    tokens = structures.tokenizer.tokenize_str(text)
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    stream = AnswerStream(None, reading)
    (call,) = message_of([*stream.feed(text), *stream.finish()])["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"x": "a b"}


@pytest.mark.parametrize(
    "parameters",
    [
        # https://github.com/MervinPraison/PraisonAI/issues/3111
        {"type": "object", "properties": {"x": {"type": "string", "enum": None}}, "required": None},
        {"type": None, "properties": None, "required": None, "additionalProperties": None, "$defs": None},
        *(schema for schema, _, _ in SCHEMAS),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_request_is_taken_whatever_its_tools_schemas_leave_null_or_have_of_older_drafts(
    api: httpx.Client, model: Model, parameters: dict[str, Any], choice: str
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    answer = api.post(CHAT, json={**ASK, "tools": [tool], "tool_choice": choice})
    assert answer.status_code == 200, answer.text
    assert "null" not in model.prompts[-1].replace('"null"', "")
    flat = {"type": "function", "name": "f", "parameters": parameters}
    answer = api.post(RESPONSES, json={"model": "llm", "input": "x", "tools": [flat], "tool_choice": choice})
    assert answer.status_code == 200, answer.text


def test_a_schema_that_cannot_be_bound_is_refused_by_the_tool_and_the_word(api: httpx.Client) -> None:
    """https://github.com/ggml-org/llama.cpp/issues/26596"""
    tools = [
        {"type": "function", "function": {"name": "now"}},
        {"type": "function", "function": {"name": "f", "parameters": holding(type="array", items={"uniqueItems": True})}},
    ]
    said = "properties.x.items.uniqueItems cannot be bound"
    assert api.post(CHAT, json={**ASK, "tools": tools}).status_code == 200
    schema = {"type": "json_schema", "json_schema": {"schema": holding(type="array", items={"uniqueItems": True})}}
    for more, where in (
        ({"tools": tools, "tool_choice": "required"}, "tools.1.function.parameters"),
        ({"tools": tools[:1], "response_format": schema}, "response_format.json_schema.schema"),
    ):
        answer = api.post(CHAT, json={**ASK, **more})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, where)
        assert answer.json()["error"]["message"] == f"{where}: {said}"


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_no_form_of_calls_binds_what_cannot_be_bound(form: str) -> None:
    reading = CallReading(form=TOOL_FORMATS[form], schemas={"f": holding(type="array", uniqueItems=True)})
    with pytest.raises(NotBindableError, match=r"^properties\.x\.uniqueItems cannot be bound$"):
        AnswerForm(calls=reading, called=True).grammar()


def test_names_within_a_schema_stay_its_authors(api: httpx.Client) -> None:
    """Whatever a form of requests calls its own fields: `tools` are `functions` in one, `messages` are `input` in another."""
    wrong: dict[str, Any] = {"type": "object"}
    function = {"name": "f", "parameters": wrong}
    for route, body, where in (
        (CHAT, {**ASK, "functions": [function]}, "functions.0.parameters"),
        (CHAT, {**ASK, "tools": [{"type": "function", "function": function}]}, "tools.0.function.parameters"),
        (RESPONSES, {"model": "llm", "input": "x", "tools": [{"type": "function", **function}]}, "tools.0.parameters"),
    ):
        for name in ("messages", "tools", "custom"):
            wrong["properties"] = {name: {"type": "no"}}
            error = api.post(route, json=body).json()["error"]
            assert error["param"] == f"{where}.properties.{name}.type"
            assert error["message"].startswith(f"{error['param']}: this is no JSON schema")
