"""The one place that validates requests to a language model: from raw arrays and JSON to concrete, frozen values."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import decode_text
from nereid.flow.noise import derived_seed
from nereid.flow.runs import read_id
from nereid.llm.sampling import Sampling
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid_protocol.fields import MAX_SEED

Inputs = Mapping[str, np.ndarray]

MAX_SEQUENCES = 16
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
MAX_BIASES = 1024


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else [] if value is None else value


def _no_booleans(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


Number = Annotated[float, BeforeValidator(_no_booleans)]
Whole = Annotated[int, BeforeValidator(_no_booleans)]


class StructuredOutputs(BaseModel):
    """vLLM's names; exactly one is given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_schema: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = Field(default=None, max_length=10_000)
    choice: list[str] | None = Field(default=None, min_length=1, max_length=1000)
    grammar: str | None = Field(default=None, max_length=100_000)

    def given(self) -> list[tuple[str, Any]]:
        found = {"json": self.json_schema, "regex": self.regex, "choice": self.choice, "grammar": self.grammar}
        return [(kind, value) for kind, value in found.items() if value is not None]


class SamplingParameters(BaseModel):
    """`sampling_parameters` as JSON, with the names and defaults of vLLM's SamplingParams."""

    model_config = ConfigDict(extra="forbid", strict=True)

    n: Whole = Field(default=1, ge=1, le=MAX_SEQUENCES)
    temperature: Number = Field(default=1.0, ge=0, le=100)
    top_k: Whole = Field(default=0, ge=-1)
    top_p: Number = Field(default=1.0, gt=0, le=1)
    min_p: Number = Field(default=0.0, ge=0, le=1)
    repetition_penalty: Number = Field(default=1.0, gt=0, le=10)
    presence_penalty: Number = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: Number = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[str, Number] | None = Field(default=None, max_length=MAX_BIASES)
    seed: Whole | None = Field(default=None, ge=0, le=MAX_SEED)
    stop: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list, max_length=MAX_STOPS)
    stop_token_ids: list[Whole] | None = Field(default=None, max_length=MAX_STOPS)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: Whole | None = Field(default=16, ge=1)
    min_tokens: Whole = Field(default=0, ge=0)
    logprobs: Whole | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    speculation: Literal["none", "ngram", "draft"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmRequest:
    """One request, every option resolved; `samplings` has one entry for each of `n` answers."""

    prompt: tuple[int, ...]
    prompt_text: str
    stream: bool
    exclude_input: bool
    samplings: tuple[Sampling, ...]
    parameters: SamplingParameters
    max_tokens: int
    stop_ids: frozenset[int]
    structure: tuple[str, Any] | None
    speculation: str
    timeout_seconds: float
    outputs: frozenset[str]
    run_id: str | None = None


RETURN_FLAGS = {
    "return_finish_reason": ("finish_reason",),
    "return_cumulative_logprob": ("cumulative_logprob",),
    "return_logprobs": ("logprobs",),
    "return_num_input_tokens": ("num_input_tokens", "num_cached_tokens"),
    "return_num_output_tokens": ("num_output_tokens",),
    "return_token_ids": ("output_ids",),
}
"""Inputs that ask for more outputs than the text, and the outputs."""


def parse_llm_request(
    inputs: Inputs, tokenizer: Tokenizer, facts: LlmFacts, limits: LlmLimits, longest: int, *, has_draft: bool = False
) -> LlmRequest:
    """Raises InvalidRequestError naming the field, its value and what is allowed; `longest` is prompt and answer together."""
    stream = _flag(inputs, "stream", False)
    exclude = _flag(inputs, "exclude_input_in_output", stream)
    if stream and not exclude:
        raise InvalidRequestError.of("exclude_input_in_output", False, "true, or absent, where stream is true")
    parameters = parse_sampling_parameters(_text(inputs, "sampling_parameters", limits.max_input_bytes) or "{}")
    text, prompt = _prompt(inputs, tokenizer, facts, limits)
    if len(prompt) >= longest:
        raise InvalidRequestError.of(
            "text_input" if "text_input" in inputs else "input_ids",
            f"{len(prompt)} tokens",
            f"at most {longest - 1} tokens: the context holds {longest} with the answer",
        )
    room = longest - len(prompt)
    wanted = _one(inputs, "max_tokens")
    if wanted is not None:
        if wanted < 1:
            raise InvalidRequestError.of("max_tokens", int(wanted), f"1 to {room}")
        max_tokens = int(wanted)
    else:
        max_tokens = room if parameters.max_tokens is None else parameters.max_tokens
    if max_tokens > room:
        raise InvalidRequestError.of("max_tokens", max_tokens, f"1 to {room}: the prompt has {len(prompt)} tokens of {longest}")
    if parameters.min_tokens > max_tokens:
        raise InvalidRequestError.of("min_tokens", parameters.min_tokens, f"at most max_tokens, {max_tokens}")
    _check_tokens("stop_token_ids", parameters.stop_token_ids or [], facts)
    for stop in parameters.stop:
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise InvalidRequestError.of("stop", stop, f"strings of 1 to {MAX_STOP_LENGTH} characters")
    if parameters.speculation == "draft" and not has_draft:
        raise InvalidRequestError.of("speculation", "draft", "none or ngram: this model was exported without a draft model")
    asked = [name for flag, names in RETURN_FLAGS.items() if _flag(inputs, flag, False) for name in names]
    eos = () if parameters.ignore_eos else facts.eos_token_ids
    return LlmRequest(
        prompt=tuple(prompt),
        prompt_text=text,
        stream=stream,
        exclude_input=exclude,
        samplings=_samplings(parameters, facts),
        parameters=parameters,
        max_tokens=max_tokens,
        stop_ids=frozenset((*eos, *(parameters.stop_token_ids or ()))),
        structure=_structure(parameters),
        speculation=parameters.speculation or limits.speculation,
        timeout_seconds=_timeout(inputs, limits),
        outputs=frozenset(("text_output", "index", *asked)),
        run_id=read_id(inputs, "run_id"),
    )


def parse_sampling_parameters(text: str) -> SamplingParameters:
    """Parse the JSON; raises InvalidRequestError for the first thing that is wrong with it."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequestError.of("sampling_parameters", text, "a JSON object") from None
    if not isinstance(raw, dict):
        raise InvalidRequestError.of("sampling_parameters", text, "a JSON object")
    try:
        return SamplingParameters.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "sampling_parameters"
        raise InvalidRequestError.of(where, first["input"], _allowed(first)) from None


def _allowed(problem: Any) -> str:
    """pydantic's message as the end of our sentence."""
    if problem["type"] == "extra_forbidden":
        return f"absent; known are {', '.join(SamplingParameters.model_fields)}"
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return message[0].lower() + message[1:]


def _samplings(parameters: SamplingParameters, facts: LlmFacts) -> tuple[Sampling, ...]:
    bias = {}
    for key, value in (parameters.logit_bias or {}).items():
        if not key.isdecimal() or int(key) >= facts.vocabulary:
            raise InvalidRequestError.of("logit_bias", key, f"token ids 0 to {facts.vocabulary - 1}")
        if not -100 <= value <= 100:
            raise InvalidRequestError.of(f"logit_bias.{key}", value, "-100 to 100")
        bias[int(key)] = float(value)
    seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
    return tuple(
        Sampling(
            temperature=parameters.temperature,
            top_k=max(parameters.top_k, 0),
            top_p=parameters.top_p,
            min_p=parameters.min_p,
            repetition_penalty=parameters.repetition_penalty,
            presence_penalty=parameters.presence_penalty,
            frequency_penalty=parameters.frequency_penalty,
            logit_bias=bias,
            seed=derived_seed(seed, index),
        )
        for index in range(parameters.n)
    )


def _structure(parameters: SamplingParameters) -> tuple[str, Any] | None:
    if parameters.structured_outputs is None:
        return None
    given = parameters.structured_outputs.given()
    if len(given) != 1:
        names = ", ".join(kind for kind, _ in given) or "nothing"
        raise InvalidRequestError.of("structured_outputs", names, "exactly one of json, regex, choice and grammar")
    return given[0]


def _prompt(inputs: Inputs, tokenizer: Tokenizer, facts: LlmFacts, limits: LlmLimits) -> tuple[str, list[int]]:
    if ("text_input" in inputs) == ("input_ids" in inputs):
        both = "both" if "text_input" in inputs else "neither"
        raise InvalidRequestError.of("text_input and input_ids", both, "exactly one of them")
    if "input_ids" in inputs:
        prompt = [int(token) for token in inputs["input_ids"].reshape(-1)]
        if not prompt:
            raise InvalidRequestError.of("input_ids", prompt, "at least one token")
        _check_tokens("input_ids", prompt, facts)
        return tokenizer.decode(prompt, skip_special_tokens=False), prompt
    text = _text(inputs, "text_input", limits.max_input_bytes)
    prompt = tokenizer.encode(text or "").ids
    if not prompt:
        raise InvalidRequestError.of("text_input", text, "text of at least one token")
    return text or "", prompt


def _check_tokens(name: str, tokens: list[int], facts: LlmFacts) -> None:
    for token in tokens:
        if not 0 <= token < facts.vocabulary:
            raise InvalidRequestError.of(name, token, f"token ids 0 to {facts.vocabulary - 1}")


def _timeout(inputs: Inputs, limits: LlmLimits) -> float:
    value = _one(inputs, "timeout_seconds")
    if value is None:
        return limits.default_timeout_seconds
    if not (math.isfinite(value) and value > 0):
        raise InvalidRequestError.of("timeout_seconds", value, "above 0 and finite")
    return float(value)


def _one(inputs: Inputs, name: str) -> float | None:
    if name not in inputs:
        return None
    values = inputs[name].reshape(-1)
    if len(values) != 1:
        raise InvalidRequestError.of(name, f"{len(values)} values", "one value")
    return float(values[0])


def _flag(inputs: Inputs, name: str, default: bool) -> bool:
    value = _one(inputs, name)
    return default if value is None else bool(value)


def _text(inputs: Inputs, name: str, most: int) -> str | None:
    if name not in inputs:
        return None
    values = inputs[name].reshape(-1)
    if len(values) != 1:
        raise InvalidRequestError.of(name, f"{len(values)} values", "one value")
    if len(values[0]) > most:
        raise InvalidRequestError.of(name, f"{len(values[0])} bytes", f"at most {most} bytes")
    return decode_text(name, values[0])
