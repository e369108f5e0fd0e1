"""What a request to a language model may say: bad values are one sentence that names the field. Table-driven."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from nereid.flow.errors import ContextLengthError, InvalidRequestError
from nereid.llm.requests import ANY_WHITESPACE, LlmRequest, StructureRequest, parse_llm_request
from nereid.llm.settings import LlmFacts, LlmLimits

from bad_texts import bad_parameters

FACTS = LlmFacts(
    architecture="LlamaForCausalLM",
    precision="fp32",
    context_length=128,
    vocabulary=50,
    eos_token_ids=(49,),
    head_size=8,
    weight_bytes=1,
    flops_per_token=1,
    kv_bytes_per_token=1,
)
LIMITS = LlmLimits(max_input_bytes=200_000)
WORDS = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
WORDS.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


def text(value: str | bytes) -> np.ndarray:
    return np.array([value.encode() if isinstance(value, str) else value], np.object_)


def parse(**inputs: np.ndarray) -> LlmRequest:
    given = {"text_input": text("w1 w2 w3"), **inputs}
    return parse_llm_request({k: v for k, v in given.items() if v is not None}, WORDS, FACTS, LIMITS, FACTS.context_length)


@pytest.mark.parametrize(("parameters", "words"), bad_parameters(FACTS.vocabulary), ids=lambda value: json.dumps(value)[:40])
def test_bad_sampling_parameters_are_named(parameters: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(sampling_parameters=text(json.dumps(parameters)))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_an_answer_that_does_not_fit_is_told_the_room() -> None:
    with pytest.raises(InvalidRequestError, match=r"max_tokens: 126 .*0 to 125"):
        parse(sampling_parameters=text('{"max_tokens": 126}'))
    assert parse(sampling_parameters=text('{"max_tokens": 125}')).max_tokens == 125


BAD_INPUTS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("no prompt", {"text_input": None}, ["text_input", "neither"]),
    ("two prompts", {"input_ids": np.array([1], np.int32)}, ["both", "exactly one"]),
    ("empty text", {"text_input": text("")}, ["text_input", "at least one token"]),
    ("undecodable", {"text_input": text(b"\xff\xfe")}, ["text_input", "UTF-8"]),
    ("too many bytes", {"text_input": text("w1 " * 70_000)}, ["text_input", "210000 bytes", "200000"]),
    ("too many tokens", {"text_input": text("w1 " * 128)}, ["text_input", "128 tokens", "at most 127"]),
    ("two texts", {"text_input": np.array([b"a", b"b"], np.object_)}, ["text_input", "2 values"]),
    ("no ids", {"text_input": None, "input_ids": np.array([], np.int32)}, ["input_ids", "at least one"]),
    ("id too large", {"text_input": None, "input_ids": np.array([1, 50], np.int32)}, ["input_ids", "50", "0 to 49"]),
    ("id negative", {"text_input": None, "input_ids": np.array([-1], np.int32)}, ["input_ids", "-1"]),
    (
        "stream with input",
        {"stream": np.array([True]), "exclude_input_in_output": np.array([False])},
        ["exclude_input_in_output"],
    ),
    ("not JSON", {"sampling_parameters": text("{temperature: 1}")}, ["sampling_parameters", "JSON object"]),
    ("JSON list", {"sampling_parameters": text("[1]")}, ["sampling_parameters", "JSON object"]),
    ("deep JSON", {"sampling_parameters": text('{"stop":' * 300)}, ["sampling_parameters"]),
    ("timeout 0", {"timeout_seconds": np.array([0], np.float32)}, ["timeout_seconds", "above 0"]),
    ("timeout NaN", {"timeout_seconds": np.array([np.nan], np.float32)}, ["timeout_seconds", "nan"]),
    ("max_tokens input -1", {"max_tokens": np.array([-1], np.int32)}, ["max_tokens", "-1", "0 to 125"]),
    ("max_tokens input too large", {"max_tokens": np.array([999], np.int32)}, ["max_tokens", "999", "125"]),
]


@pytest.mark.parametrize(("inputs", "words"), [case[1:] for case in BAD_INPUTS], ids=[case[0] for case in BAD_INPUTS])
def test_bad_inputs_are_named(inputs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**inputs)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_defaults_are_vllms_and_everything_is_resolved() -> None:
    request = parse(sampling_parameters=text('{"top_k": -1, "seed": 3, "n": 2, "stop": "x"}'))
    assert (request.max_tokens, request.stream, request.exclude_input, request.speculation) == (16, False, False, "none")
    assert [sampling.top_k for sampling in request.samplings] == [0, 0]
    assert request.samplings[0].seed == 3
    assert request.samplings[1].seed != 3
    assert request.stop == ("x",)
    assert request.stop_ids == {49}
    assert parse(sampling_parameters=text('{"max_tokens": null}')).max_tokens == 125
    assert parse(sampling_parameters=text('{"ignore_eos": true, "stop_token_ids": [4]}')).stop_ids == {4}


def test_a_seed_of_minus_one_is_as_none() -> None:
    drawn = {parse(sampling_parameters=text('{"seed": -1}')).samplings[0].seed for _ in range(3)}
    assert len(drawn) == 3
    assert -1 not in drawn


def test_limits_name_the_parameter_that_is_wrong() -> None:
    assert not LlmLimits.from_parameters({"batch_invariant": "false"}).batch_invariant
    assert LlmLimits.from_parameters({"stream_interval_seconds": "0"}).stream_interval_seconds == 0
    rounded = {"kv_cache_precision": "int8"}
    assert LlmLimits.from_parameters({**rounded, "engine": "openvino", "batch_invariant": "false"}).engine_file == "model.xml"
    for parameters, words in (
        ({"batch_invariant": "yes"}, "batch_invariant: 'yes' is not allowed; it must be true or false"),
        ({"speculation": "magic"}, "speculation: 'magic' is not allowed"),
        ({"kv_tokens": "0"}, "kv_tokens: 0 is not allowed"),
        ({"kv_tokens": "7"}, "kv_tokens: 7 is not allowed; it must be at least 8"),
        ({"engine": "tensorrt"}, "engine: 'tensorrt' is not allowed; it must be onnxruntime or openvino"),
        ({"kv_cache_precision": "int4"}, "kv_cache_precision: 'int4' is not allowed; it must be fp32 or int8"),
        ({"kv_cache_precision": "int8"}, "kv_cache_precision: int8 is not allowed with engine onnxruntime"),
        ({**rounded, "engine": "openvino"}, "kv_cache_precision: int8 is not allowed with batch_invariant true"),
    ):
        with pytest.raises(ValueError, match=words):
            LlmLimits.from_parameters(parameters)


class Counted:
    """A tokenizer that counts the characters it is given."""

    def __init__(self) -> None:
        self.characters = 0

    def encode(self, given: str) -> Any:
        self.characters += len(given)
        return WORDS.encode(given)


@pytest.mark.parametrize("long", ["w1 " * 60_000, "w" * 190_000])
def test_a_prompt_that_is_far_too_long_is_refused_by_its_beginning(long: str) -> None:
    """What is read of it is bounded by the context, not by the prompt."""
    tokenizer: Any = Counted()
    with pytest.raises(InvalidRequestError, match="text_input"):
        parse_llm_request({"text_input": text(long)}, tokenizer, FACTS, LIMITS, FACTS.context_length)
    assert tokenizer.characters < 4000


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"text_input": text("w1 " * 99)}, "text_input"),
        ({"text_input": text("w1 " * 60_000)}, "text_input"),
        ({"text_input": text("w" * 190_000)}, "text_input"),
        ({"input_ids": np.array([2] * 99, np.int32)}, "input_ids"),
        ({"text_input": text("w1"), "max_tokens": np.array([99], np.int32)}, "max_tokens"),
    ],
)
def test_what_does_not_fit_is_told_in_words_that_clients_know(sent: dict[str, Any], field: str) -> None:
    """litellm and pydantic-ai look for them."""
    with pytest.raises(ContextLengthError) as caught:
        parse_llm_request(sent, WORDS, FACTS, LIMITS, 50)
    assert str(caught.value).startswith(f"{field}: ")
    assert "this model's maximum context length is 50 tokens" in str(caught.value)


def test_probabilities_are_computed_where_only_their_sum_is_asked_for() -> None:
    asked = parse(return_cumulative_logprob=np.array([True]))
    assert asked.scored
    assert not asked.logprobs
    assert not parse().scored


def test_more_answers_than_the_model_has_rows_are_refused_as_n() -> None:
    few = LlmLimits(max_rows=2)
    with pytest.raises(InvalidRequestError, match=r"^n: 3 is not allowed; it must be 1 to 2, the model's max_rows"):
        parse_llm_request(
            {"text_input": text("w1"), "sampling_parameters": text('{"n": 3}')}, WORDS, FACTS, few, FACTS.context_length
        )


def test_parameters_of_the_request_are_sampling_parameters_too_and_numbers_may_be_texts() -> None:
    """As Triton's `generate` endpoint and vLLM backend have them: beside the tensors, and as strings."""
    asked = parse(request_parameters=text('{"temperature": "0", "max_tokens": "8", "stop": "x"}'))
    assert asked.samplings[0].greedy
    assert (asked.max_tokens, asked.stop) == (8, ("x",))
    with pytest.raises(InvalidRequestError, match="temprature"):
        parse(request_parameters=text('{"temprature": 0}'))
    with pytest.raises(InvalidRequestError, match="given once"):
        parse(request_parameters=text('{"top_k": 3}'), sampling_parameters=text('{"top_k": 3}'))


def test_whole_numbers_may_have_a_point_and_truth_values_be_numbers() -> None:
    """JSON tells 8.0 from 8 no more than vLLM does, and its backend takes 1 for true."""
    asked = parse(sampling_parameters=text('{"max_tokens": 8.0, "top_k": 40.0, "stop_token_ids": [3.0], "ignore_eos": 1}'))
    assert (asked.max_tokens, asked.samplings[0].top_k, asked.stop_ids) == (8, 40, {3})
    assert all(type(number) is int for number in (asked.max_tokens, asked.samplings[0].top_k, *asked.stop_ids))
    assert parse(sampling_parameters=text('{"ignore_eos": 0}')).stop_ids == {49}
    for wrong in ('{"top_k": 1e400}', '{"ignore_eos": 2}', '{"ignore_eos": 1.5}'):
        with pytest.raises(InvalidRequestError, match="is not allowed"):
            parse(sampling_parameters=text(wrong))


def test_members_of_vllms_sampling_parameters_that_change_nothing_are_taken() -> None:
    """A program that sends all members of vLLM's objects is understood: null is as absent, whatever its name."""
    idle = {"best_of": "1", "use_beam_search": False, "length_penalty": 1, "detokenize": True, "extra_args": {}, "foo": None}
    whole = dict.fromkeys(("json", "choice", "grammar", "whitespace_pattern", "structural_tag")) | {
        "regex": "a",
        "json_object": False,
        "disable_any_whitespace": False,
        "disable_additional_properties": False,
        "backend": "xgrammar",
    }
    asked = parse(sampling_parameters=text(json.dumps({**idle, "structured_outputs": whole})))
    assert asked.structure == StructureRequest(kind="regex", value="a", whitespace=ANY_WHITESPACE)
    for other in ({"use_beam_search": "true"}, {"length_penalty": 0.5}, {"detokenize": 1}, {"logits_processors": ["x"]}):
        (name,) = other
        with pytest.raises(InvalidRequestError, match=f"^{name}: .* is not allowed; it must be .* or absent"):
            parse(sampling_parameters=text(json.dumps(other)))
    with pytest.raises(InvalidRequestError, match=r"structured_outputs.disable_fallback: True .* it must be false or absent"):
        parse(sampling_parameters=text(json.dumps({"structured_outputs": {"regex": "a", "disable_fallback": True}})))


@pytest.mark.parametrize("whitespace", [None, " ?"])
def test_an_answer_may_be_any_object_of_json(whitespace: str | None) -> None:
    given = {"json_object": True, "whitespace_pattern": whitespace}
    asked = parse(sampling_parameters=text(json.dumps({"structured_outputs": given})))
    assert asked.structure == StructureRequest(kind="json", value={"type": "object"}, whitespace=whitespace)
    both = {"structured_outputs": {"json_object": True, "regex": "a"}}
    with pytest.raises(InvalidRequestError, match="regex, json_object' is not allowed; it must be exactly one of"):
        parse(sampling_parameters=text(json.dumps(both)))


@pytest.mark.parametrize("given", [{"regex": "a"}, '{"regex": "a"}'])
def test_structured_outputs_have_the_name_of_vllms_backend_too(given: object) -> None:
    asked = parse(sampling_parameters=text(json.dumps({"guided_decoding": given})))
    assert asked.structure == StructureRequest(kind="regex", value="a")
    for beside in ({"structured_outputs": {"regex": "b"}}, {"guided_regex": "b"}):
        with pytest.raises(InvalidRequestError, match="absent where structured_outputs is given"):
            parse(sampling_parameters=text(json.dumps({"guided_decoding": given, **beside})))
    with pytest.raises(InvalidRequestError, match=r"^guided_decoding\.regex: 3 is not allowed"):
        parse(sampling_parameters=text('{"guided_decoding": {"regex": 3}}'))
