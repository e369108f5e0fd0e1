"""The one place that validates requests to a language model: from raw arrays and JSON to concrete, frozen values."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import decode_text
from nereid.flow.noise import derived_seed
from nereid.flow.runs import read_id
from nereid.llm.sampling import Sampling
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid_protocol.sampling import GREEDY_BELOW, SAMPLING_FIELDS, STRUCTURES, SamplingError, read_fields

Inputs = Mapping[str, np.ndarray]

MAX_CHOICE_CHARACTERS = 100_000
ANY_WHITESPACE = r"[ \n\r\t]*"
REQUEST_PARAMETERS = "request_parameters"
"""Under this name the bridge hands on what a request brings beside its tensors: a JSON object."""

_PROBE_MARGIN = 64
"""Tokens by which a text's beginning may be cut into more than the whole text is."""
_CHARACTERS = 4
"""Characters of a token in usual text."""


@dataclass(frozen=True, slots=True)
class SentSampling:
    """Sampling parameters as they were sent: each checked by the table of fields, its default where it was not sent."""

    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureRequest:
    """What binds an answer's form; `whitespace` is a regular expression of what may stand between the parts of JSON."""

    kind: str
    value: Any
    whitespace: str | None = None

    @property
    def field(self) -> str:
        return f"structured_outputs.{self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmRequest:
    """One request, every option concrete; `samplings` has one entry for each of `n` answers.

    `scored`: whether the drawn tokens' log probabilities are computed; `logprobs`: whether they are told, with `top_logprobs`
    of the likeliest tokens at each place.
    """

    prompt: tuple[int, ...]
    prompt_text: str
    stream: bool
    exclude_input: bool
    samplings: tuple[Sampling, ...]
    max_tokens: int
    min_tokens: int
    stop_ids: frozenset[int]
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    scored: bool
    logprobs: bool
    top_logprobs: int
    structure: StructureRequest | None
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
    sent = read_sampling(inputs, limits)
    _check_sampling(sent, facts, limits, has_draft)
    asked = [name for flag, names in RETURN_FLAGS.items() if _flag(inputs, flag, False) for name in names]
    run_id, timeout = read_id(inputs, "run_id"), _timeout(inputs, limits)
    text, prompt = _prompt(inputs, tokenizer, facts, limits, longest)  # the one dear part, after all that is cheap to refuse
    max_tokens = _max_tokens(inputs, sent, len(prompt), longest)
    if sent["min_tokens"] > max_tokens:
        raise InvalidRequestError.of("min_tokens", sent["min_tokens"], f"at most max_tokens, {max_tokens}")
    eos = () if sent["ignore_eos"] else facts.eos_token_ids
    return LlmRequest(
        prompt=tuple(prompt),
        prompt_text=text,
        stream=stream,
        exclude_input=exclude,
        samplings=_samplings(sent, facts),
        max_tokens=max_tokens,
        min_tokens=sent["min_tokens"],
        stop_ids=frozenset((*eos, *sent["stop_token_ids"])),
        stop=tuple(sent["stop"]),
        include_stop=sent["include_stop_str_in_output"],
        skip_special_tokens=sent["skip_special_tokens"],
        scored=sent["logprobs"] is not None or "cumulative_logprob" in asked,
        logprobs=sent["logprobs"] is not None,
        top_logprobs=sent["logprobs"] or 0,
        structure=_structure(sent),
        speculation=sent["speculation"] or limits.speculation,
        timeout_seconds=timeout,
        outputs=frozenset(("text_output", "index", *asked)),
        run_id=run_id,
    )


def read_sampling(inputs: Inputs, limits: LlmLimits) -> SentSampling:
    """The JSON of `sampling_parameters` and the request's own parameters, one object; raises InvalidRequestError."""
    given = _object("sampling_parameters", _text(inputs, "sampling_parameters", limits.max_input_bytes))
    beside = _object("request parameters", _text(inputs, REQUEST_PARAMETERS, limits.max_input_bytes))
    for name, value in beside.items():
        if name in given:
            raise InvalidRequestError.of(name, value, "given once, in sampling_parameters or as a parameter of the request")
    try:
        return SentSampling(read_fields(SAMPLING_FIELDS, {**given, **beside}))
    except SamplingError as error:
        raise InvalidRequestError.of(error.field, error.value, error.allowed) from None


def _object(name: str, text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise InvalidRequestError.of(name, text, "a JSON object")
    return raw


def _check_sampling(sent: SentSampling, facts: LlmFacts, limits: LlmLimits, has_draft: bool) -> None:
    """What depends on the model."""
    if sent["n"] > limits.max_rows:
        raise InvalidRequestError.of("n", sent["n"], f"1 to {limits.max_rows}, the model's max_rows")
    _check_tokens("stop_token_ids", sent["stop_token_ids"], facts)
    for key in sent["logit_bias"] or ():
        if not (key.isdecimal() and key.isascii() and len(key) < 10 and int(key) < facts.vocabulary):
            raise InvalidRequestError.of("logit_bias", key, f"token ids 0 to {facts.vocabulary - 1}")
    if sent["speculation"] == "draft" and not has_draft:
        raise InvalidRequestError.of("speculation", "draft", "none or ngram: this model was exported without a draft model")


def _max_tokens(inputs: Inputs, sent: SentSampling, prompt: int, longest: int) -> int:
    room = longest - prompt
    wanted = _one(inputs, "max_tokens")
    if wanted is not None and wanted < 1:
        raise InvalidRequestError.of("max_tokens", int(wanted), f"1 to {room}")
    found = int(wanted) if wanted is not None else room if sent["max_tokens"] is None else int(sent["max_tokens"])
    if found > room:
        raise InvalidRequestError.of("max_tokens", found, f"1 to {room}: the prompt has {prompt} tokens of {longest}")
    return found


def _samplings(sent: SentSampling, facts: LlmFacts) -> tuple[Sampling, ...]:
    seed = secrets.randbits(63) if sent["seed"] is None else sent["seed"]
    return tuple(
        Sampling(
            temperature=sent["temperature"] if sent["temperature"] >= GREEDY_BELOW else 0.0,
            top_k=max(sent["top_k"], 0),
            top_p=sent["top_p"],
            min_p=sent["min_p"],
            repetition_penalty=sent["repetition_penalty"],
            presence_penalty=sent["presence_penalty"],
            frequency_penalty=sent["frequency_penalty"],
            logit_bias={int(token): bias for token, bias in (sent["logit_bias"] or {}).items()},
            seed=derived_seed(seed, index),
        )
        for index in range(sent["n"])
    )


def _structure(sent: SentSampling) -> StructureRequest | None:
    given = sent["structured_outputs"]
    if given is None:
        return None
    kinds = [kind for kind in STRUCTURES if given[kind] is not None]
    if len(kinds) != 1:
        names = ", ".join(kinds) or "nothing"
        raise InvalidRequestError.of("structured_outputs", names, "exactly one of json, regex, choice and grammar")
    pattern, compact = given["whitespace_pattern"], given["disable_any_whitespace"]
    for name, value in (("whitespace_pattern", pattern), ("disable_any_whitespace", None if compact else False)):
        if value is not None and kinds != ["json"]:
            raise InvalidRequestError.of(f"structured_outputs.{name}", value, "absent where there is no json")
    value = given[kinds[0]]
    if kinds == ["choice"] and (not value or sum(map(len, value)) > MAX_CHOICE_CHARACTERS):
        shown = f"{len(value)} texts of {sum(map(len, value))} characters together"
        raise InvalidRequestError.of("structured_outputs.choice", shown, f"1 to 1000 texts of at most {MAX_CHOICE_CHARACTERS}")
    return StructureRequest(
        kind=kinds[0], value=value, whitespace=pattern if pattern is not None else None if compact else ANY_WHITESPACE
    )


def _prompt(inputs: Inputs, tokenizer: Tokenizer, facts: LlmFacts, limits: LlmLimits, longest: int) -> tuple[str, list[int]]:
    if ("text_input" in inputs) == ("input_ids" in inputs):
        both = "both" if "text_input" in inputs else "neither"
        raise InvalidRequestError.of("text_input and input_ids", both, "exactly one of them")
    if "input_ids" in inputs:
        _check_length("input_ids", inputs["input_ids"].size, longest)
        prompt = [int(token) for token in inputs["input_ids"].reshape(-1)]
        if not prompt:
            raise InvalidRequestError.of("input_ids", prompt, "at least one token")
        _check_tokens("input_ids", prompt, facts)
        return tokenizer.decode(prompt, skip_special_tokens=False), prompt
    text = _text(inputs, "text_input", limits.max_input_bytes) or ""
    prompt = _encode(text, tokenizer, facts, longest)
    if not prompt:
        raise InvalidRequestError.of("text_input", text, "text of at least one token")
    _check_length("text_input", len(prompt), longest)
    _check_tokens("text_input", prompt, facts)  # a tokenizer may know tokens that the model has no room for
    return text, prompt


def _encode(text: str, tokenizer: Tokenizer, facts: LlmFacts, longest: int) -> list[int]:
    """A text's tokens. One that is too long is refused by its length, or by its beginning: the work is bounded by the context."""
    most = longest * facts.longest_token
    if len(text) > most:
        raise InvalidRequestError.of("text_input", f"{len(text)} characters", f"at most {most} characters: {_holds(longest)}")
    begins = _CHARACTERS * (longest + _PROBE_MARGIN)
    while len(text) > 2 * begins:
        found = len(tokenizer.encode(text[:begins]).ids)
        if found > longest + _PROBE_MARGIN:
            raise InvalidRequestError.of("text_input", f"more than {longest - 1} tokens", f"shorter: {_holds(longest)}")
        begins *= 2
    return list(tokenizer.encode(text).ids)


def _holds(longest: int) -> str:
    return f"the context holds {longest} tokens with the answer"


def _check_length(name: str, tokens: int, longest: int) -> None:
    if tokens >= longest:
        allowed = f"at most {longest - 1} tokens: the context holds {longest} with the answer"
        raise InvalidRequestError.of(name, f"{tokens} tokens", allowed)


def _check_tokens(name: str, tokens: Sequence[int], facts: LlmFacts) -> None:
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
