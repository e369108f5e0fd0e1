"""A request to a language model as it was sent: every input typed, nothing resolved; knows neither model nor tokenizer.

What it comes to, with every default in place, is an LlmRequest, made from it once (nereid.llm.requests).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import decode_text
from nereid.flow.request_parameters import REQUEST_PARAMETERS
from nereid.flow.runs import read_id
from nereid_protocol.older_names import without_older_names
from nereid_protocol.sampling import EMBEDDING_FIELDS, SAMPLING_FIELDS, UNREAD_SAMPLING
from nereid_protocol.sampling_field import SamplingError, read_fields

Inputs = Mapping[str, np.ndarray]

RETURN_FLAGS = {
    "return_finish_reason": ("finish_reason",),
    "return_cumulative_logprob": ("cumulative_logprob",),
    "return_logprobs": ("logprobs",),
    "return_num_input_tokens": ("num_input_tokens", "num_cached_tokens"),
    "return_num_output_tokens": ("num_output_tokens",),
    "return_token_ids": ("output_ids",),
}
"""Inputs that ask for more outputs than the text, and the outputs."""

TASKS = ("generate", "embed")
"""What is done with a prompt: it is continued, or the mean of its last hidden states is given; vLLM's words."""
_OF_ANSWERS = ("stream", "exclude_input_in_output", "max_tokens", *(RETURN_FLAGS.keys() - {"return_num_input_tokens"}))
"""Inputs that mean nothing where no answer is written."""


@dataclass(frozen=True, slots=True)
class SentSampling:
    """Sampling parameters as they were sent: each checked by the table of fields, its default where it was not sent."""

    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SentRequest:
    """One request's inputs, None where one was not sent; `asked` are the outputs that were asked for beside the usual ones.

    `embeds`: the prompt is not to be continued, but embedded.
    """

    text_input: str | None
    input_ids: NDArray[np.int32] | None
    sampling: SentSampling
    max_tokens: int | None
    stream: bool | None
    exclude_input: bool | None
    asked: tuple[str, ...]
    timeout_seconds: float | None
    run_id: str | None
    embeds: bool = False


def read_request(inputs: Inputs, max_input_bytes: int) -> SentRequest:
    """Raises InvalidRequestError by name where an input has not the form that it must have for any model."""
    if ("text_input" in inputs) == ("input_ids" in inputs):
        both = "both" if "text_input" in inputs else "neither"
        raise InvalidRequestError.of("text_input and input_ids", both, "exactly one of them")
    embeds = _embeds(inputs, max_input_bytes)
    max_tokens = _one(inputs, "max_tokens")
    return SentRequest(
        text_input=_text(inputs, "text_input", max_input_bytes),
        input_ids=inputs["input_ids"].reshape(-1) if "input_ids" in inputs else None,
        sampling=read_sampling(inputs, max_input_bytes, embeds=embeds),
        max_tokens=None if max_tokens is None else int(max_tokens),
        stream=_flag(inputs, "stream"),
        exclude_input=_flag(inputs, "exclude_input_in_output"),
        asked=tuple(name for flag, names in RETURN_FLAGS.items() if _flag(inputs, flag) for name in names),
        timeout_seconds=_timeout(inputs),
        run_id=read_id(inputs, "run_id"),
        embeds=embeds,
    )


def _embeds(inputs: Inputs, max_input_bytes: int) -> bool:
    """Whether the task is to embed; raises InvalidRequestError for one that there is not, and for what is said of an answer."""
    task = _text(inputs, "task", max_input_bytes) or TASKS[0]
    if task not in TASKS:
        raise InvalidRequestError.of("task", task, " or ".join(TASKS))
    if task == TASKS[0]:
        return False
    for name in _OF_ANSWERS:
        if (value := _one(inputs, name)) is not None and (value or name == "max_tokens"):
            shown = int(value) if name == "max_tokens" else True
            raise InvalidRequestError.of(name, shown, "absent where the task is embed: nothing is written")
    return True


def read_sampling(inputs: Inputs, max_input_bytes: int, *, embeds: bool = False) -> SentSampling:
    """The JSON of `sampling_parameters` and the request's own parameters, one object; raises InvalidRequestError."""
    given = _object("sampling_parameters", _text(inputs, "sampling_parameters", max_input_bytes))
    beside = _object("request parameters", _text(inputs, REQUEST_PARAMETERS, max_input_bytes))
    for name, value in beside.items():
        if name in given:
            raise InvalidRequestError.of(name, value, "given once, in sampling_parameters or as a parameter of the request")
    for name, value in {**given, **beside}.items() if embeds else ():
        if name not in EMBEDDING_FIELDS and value is not None:
            raise InvalidRequestError.of(name, value, "absent where the task is embed: nothing is written")
    try:
        return SentSampling(read_fields(SAMPLING_FIELDS, without_older_names({**given, **beside}), unread=UNREAD_SAMPLING))
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


def _timeout(inputs: Inputs) -> float | None:
    value = _one(inputs, "timeout_seconds")
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InvalidRequestError.of("timeout_seconds", value, "above 0 and finite")
    return value


def _one(inputs: Inputs, name: str) -> float | None:
    if name not in inputs:
        return None
    values = inputs[name].reshape(-1)
    if len(values) != 1:
        raise InvalidRequestError.of(name, f"{len(values)} values", "one value")
    return float(values[0])


def _flag(inputs: Inputs, name: str) -> bool | None:
    value = _one(inputs, name)
    return None if value is None else bool(value)


def _text(inputs: Inputs, name: str, most: int) -> str | None:
    if name not in inputs:
        return None
    values = inputs[name].reshape(-1)
    if len(values) != 1:
        raise InvalidRequestError.of(name, f"{len(values)} values", "one value")
    if len(values[0]) > most:
        raise InvalidRequestError.of(name, f"{len(values[0])} bytes", f"at most {most} bytes")
    return decode_text(name, values[0])
