"""Schemas that other servers refuse, each from a public report: here they bind what they say, or are refused by their word."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nereid.llm.json_schemas import newest, readable, unbindable, without_nulls
from nereid.llm.structure import StructureFactory

BIGGEST = 2**63 - 1


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> StructureFactory:
    """One token a byte."""
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(file))
    return StructureFactory.of(file, made.get_vocab_size(), (made.get_vocab_size() - 1,))


def takes(structures: StructureFactory, schema: Any, text: str) -> bool:
    """Whether an answer bound to a schema may be this one."""
    matcher = structures.compile("json", schema).matcher
    tokens = structures.tokenizer.tokenize_str(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def holding(**inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": inner}, "required": ["x"], "additionalProperties": False}


SCHEMAS: list[tuple[Any, tuple[str, ...], tuple[str, ...]]] = [
    # https://github.com/mastra-ai/mastra/issues/19273, https://github.com/noonghunna/club-3090/issues/45: zod's records
    (
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}},
        ("{}", '{"a":1}'),
        ('{"a":"b"}',),
    ),
    (
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}, "required": ["a"]},
        ('{"a":1}', '{"a":1,"b":2}'),
        ("{}", '{"a":1,"c":2}', '{"a":"b"}'),
    ),
    (
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "integer"}},
        ("{}", '{"ab":1}'),
        ('{"A":1}', '{"ab":"c"}'),
    ),
    (
        {"type": "object", "propertyNames": {"format": "own"}, "additionalProperties": {"type": "null"}},
        ('{"a":null}',),
        ('{"a":1}',),
    ),
    ({**holding(type="integer"), "propertyNames": {"enum": ["y", "x"]}}, ('{"x":1}',), ('{"x":1,"y":1}',)),
    # https://github.com/cloudflare/mcp-server-cloudflare/issues/391: what zod writes of what may be left out
    (holding(anyOf=[{"not": {}}, {"type": "string", "enum": ["a"]}]), ('{"x":"a"}',), ('{"x":1}',)),
    ({"type": "object", "properties": {"x": {"not": {}}}, "additionalProperties": False}, ("{}",), ('{"x":1}',)),
    # https://github.com/zaggino/z-schema/issues/121, https://github.com/longbridge/developers/issues/1264
    (holding(type="string", format="password"), ('{"x":"a b"}',), ('{"x":1}',)),
    (holding(type=["string", "null"], format="path"), ('{"x":null}', '{"x":"/a"}'), ('{"x":1}',)),
    (holding(type="integer", format="uint64", minimum=0.0), ('{"x":7}',), ('{"x":-1}', '{"x":"7"}')),
    (holding(type="string", format="date"), ('{"x":"2024-05-01"}',), ('{"x":"May"}',)),
    # https://github.com/ggml-org/llama.cpp/issues/25923, /26596
    (holding(type="string", maxLength=2**53 - 1), ('{"x":"a"}',), ('{"x":1}',)),
    (holding(type="string", minLength=1.0, maxLength=2.0), ('{"x":"a"}', '{"x":"ab"}'), ('{"x":""}', '{"x":"abc"}')),
    # https://github.com/bufbuild/protoschema-plugins/pull/82, https://github.com/sgl-project/sglang/pull/34778
    (holding(type="integer", minimum=-BIGGEST - 1, maximum=BIGGEST), ('{"x":-5}', '{"x":5}'), ('{"x":1.5}',)),
    (holding(type="integer", minimum=0, maximum=2**64 - 1), ('{"x":5}',), ('{"x":-5}',)),
    (holding(type="number", minimum=-1.7976931348623157e308, maximum=3.4e38), ('{"x":-5.5}',), ('{"x":"a"}',)),
    # https://github.com/vega/ts-json-schema-generator/issues/273, https://github.com/YousefED/typescript-json-schema/issues/617
    ({**holding(**{"$ref": "#/$defs/List<a, b>"}), "$defs": {"List<a, b>": {"type": "null"}}}, ('{"x":null}',), ('{"x":1}',)),
    ({"$ref": "#/definitions/R[int]", "definitions": {"R[int]": {"type": "integer"}}}, ("1",), ('"a"',)),
    ({"$ref": "#/definitions/100%25", "definitions": {"100%": {"type": "integer"}}}, ("1",), ('"a"',)),
    # https://github.com/ajv-validator/ajv/issues/1450, https://github.com/Stranger6667/jsonschema/pull/803
    ({"$schema": "https://json-schema.org/draft-07/schema#", "type": "integer"}, ("1",), ('"a"',)),
    ({"$schema": "https://example.com/own", "$id": "My tool", "type": "integer"}, ("1",), ('"a"',)),
    # https://github.com/MervinPraison/PraisonAI/issues/3111: Go's and Python's lists that nobody has made
    ({"type": "object", "properties": None, "required": None, "additionalProperties": None}, ("{}",), ("[]",)),
    (holding(type="string", enum=None, format=None, pattern=None, default=None), ('{"x":"a"}',), ('{"x":null}',)),
    (holding(const=None), ('{"x":null}',), ('{"x":1}',)),
    # https://github.com/sinclairzx81/typebox/issues/1165, https://github.com/Dokploy/mcp/issues/74: of older drafts
    (
        holding(type="array", items=[{"type": "null"}, {"type": "integer"}], minItems=2, maxItems=2),
        ('{"x":[null,1]}',),
        ('{"x":[1,1]}',),
    ),
    (holding(type="integer", minimum=0, exclusiveMinimum=True), ('{"x":1}',), ('{"x":0}',)),
    # https://github.com/ggml-org/llama.cpp/issues/16790: a reference into a list
    (
        {
            "type": "object",
            "properties": {"a": {"anyOf": [{"type": "null"}, {"type": "integer"}]}, "b": {"$ref": "#/properties/a/anyOf/1"}},
        },
        ('{"b":1}',),
        ('{"b":null}',),
    ),
    # https://github.com/ggml-org/llama.cpp/issues/27580, /22314, https://github.com/containers/kubernetes-mcp-server/issues/758
    (holding(type="string", pattern="^\\d+(\\.\\w+)?$"), ('{"x":"12.a"}',), ('{"x":"a"}',)),
    (holding(type="string", pattern="\\S"), ('{"x":" a"}',), ('{"x":" "}',)),
    # https://github.com/vllm-project/vllm/pull/30730
    (
        {**holding(type="integer", multipleOf=5), "patternProperties": {"^x$": {"type": "integer"}}},
        ('{"x":10}',),
        ('{"x":9}', '{"x":10,"y":1}'),
    ),
    # Names that are words elsewhere, and data
    (
        holding(type="object", properties={"format": {"const": {"not": {}, "format": "path"}}}, required=["format"]),
        (),
        ('{"x":{"format":1}}',),
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS, ids=lambda value: json.dumps(value)[:60])
def test_a_schema_binds_what_it_says(
    structures: StructureFactory, schema: Any, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    assert [text for text in good if not takes(structures, schema, text)] == []
    assert [text for text in bad if takes(structures, schema, text)] == []
    assert [text for text in good if not takes(structures, json.dumps(schema), text)] == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        # https://github.com/ggml-org/llama.cpp/issues/26596: which property, and which word, is to blame
        (holding(type="array", uniqueItems=True), "properties.x.uniqueItems cannot be bound"),
        ({"$defs": {"a": {"items": [{}, {"contains": {}}]}}}, "$defs.a.items.1.contains cannot be bound"),
        ({"additionalProperties": {"anyOf": [{}, {"if": {}}]}}, "additionalProperties.anyOf.1.if cannot be bound"),
        (holding(**{"not": {"type": "null"}}), "properties.x.not cannot be bound"),
        ({"type": "object", "propertyNames": {"minLength": 2}}, "propertyNames cannot be bound"),
        ({"type": "object", "propertyNames": {"type": "integer"}}, "propertyNames cannot be bound"),
        ({"type": "object", "propertyNames": {"pattern": ["a"]}}, "propertyNames cannot be bound"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties cannot be bound"),
        (holding(type="number", minimum=1e300), "float range"),
        # https://github.com/codefuturist/email-mcp/issues/58: zod's own expression of an address
        (
            holding(type="string", pattern="^(?!\\.)a$"),
            "^(?!\\.)a$: look-around, including look-ahead and look-behind, is not supported",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_bound_is_refused_by_its_word(structures: StructureFactory, schema: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        structures.compile("json", schema)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}])
def test_a_schema_that_only_leads_back_to_itself_is_a_value_error_that_says_so(
    structures: StructureFactory, schema: dict[str, Any]
) -> None:
    """Once its first tokens are looked for."""
    with pytest.raises(ValueError, match="leads back to itself, and says nothing else"):
        structures.compile("json", schema).allowed()


@pytest.mark.parametrize("expression", ["(" * 4000 + "a" + ")" * 4000, "a{9}" * 1000 + "(", "a" * 4000 + "$b"])
def test_a_long_expression_is_not_told_as_a_whole(structures: StructureFactory, expression: str) -> None:
    for kind, value in (("json", {"type": "string", "pattern": expression}), ("regex", expression)):
        with pytest.raises(ValueError, match="regex") as caught:
            structures.compile(kind, value).allowed()
        assert len(str(caught.value)) < 800


def test_words_that_say_nothing_are_none() -> None:
    schema = {
        "uniqueItems": False,
        "unevaluatedProperties": True,
        "unevaluatedItems": {},
        "dependencies": {},
        "dependentRequired": {},
    }
    assert readable(schema) == {}
    assert readable({"uniqueItems": 0, "unevaluatedProperties": 1}) == {"uniqueItems": 0, "unevaluatedProperties": 1}


def test_a_schema_that_goes_too_deep_is_a_value_error(structures: StructureFactory) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="nested too deeply"):
        structures.compile("json", deep)


def test_records_in_each_other_are_not_written_out_for_every_name() -> None:
    """Each has the next for both of its names: all together would be 2^17 of them."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(17):
        schema = {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": schema}
    assert len(json.dumps(readable(schema))) < 100_000
    assert str(unbindable(schema)).endswith("propertyNames")


def test_data_and_names_of_properties_stay_as_they_are() -> None:
    schema = {
        "properties": {"format": {"type": "string"}, "not": {"enum": [None, {"format": "path", "not": {}}]}},
        "default": {"required": None, "format": "path"},
    }
    assert readable(schema) == schema
    assert without_nulls(schema) == schema
    assert newest(schema) == schema


def test_a_schema_in_json_that_is_none_is_a_value_error(structures: StructureFactory) -> None:
    with pytest.raises(ValueError, match="EOF while parsing"):
        structures.compile("json", '{"type": ')


def test_what_is_sent_is_not_changed() -> None:
    sent = holding(type="string", format="path", maxLength=2**60, anyOf=[{"not": {}}, {}])
    before = json.dumps(sent)
    readable(sent)
    assert json.dumps(sent) == before
