"""A text request and its results as types, and their translation to and from the model's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nereid_client.errors import InvalidRequestError
from nereid_client.images import Tensors, encoded

_STREAM_FLAGS = ("return_finish_reason", "return_num_input_tokens", "return_token_ids")
"""A stream has an answer for every token or two, so it asks for no more than a TextDelta holds."""
_LARGEST_TOKEN = 2**31 - 1
_FLAGS = (*_STREAM_FLAGS, "return_cumulative_logprob", "return_num_output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChoice:
    """One whole answer. `finish_reason` is stop or length; `logprobs` is there where the request asked for it."""

    index: int
    text: str
    finish_reason: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    logprobs: list[dict[str, Any]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextResult:
    """All answers to one request, and how many tokens went in (`num_cached_tokens` of them from the prefix cache)."""

    choices: tuple[TextChoice, ...]
    num_input_tokens: int
    num_cached_tokens: int
    run_id: str = ""
    system_fingerprint: str | None = None
    prompt_logprobs: list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].text

    @property
    def num_output_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices)

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> TextResult:
        counts = [int(count) for count in tensors["num_output_tokens"]]
        longest = max(counts)
        rows = tensors["output_ids"].reshape(len(counts), longest)
        return cls(
            choices=tuple(
                TextChoice(
                    index=index,
                    text=tensors["text_output"][index].decode(),
                    finish_reason=tensors["finish_reason"][index].decode(),
                    token_ids=tuple(int(token) for token in rows[index][:count]),
                    cumulative_logprob=float(tensors["cumulative_logprob"][index]),
                    logprobs=_logprobs(tensors, index),
                )
                for index, count in enumerate(counts)
            ),
            num_input_tokens=int(tensors["num_input_tokens"][0]),
            num_cached_tokens=int(tensors["num_cached_tokens"][0]),
            system_fingerprint=fingerprint(tensors),
            prompt_logprobs=_logprobs(tensors, 0, "prompt_logprobs"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """What one or several tokens added to answer `index`; `finish_reason` is there in its last one.

    `prompt_logprobs` are there in the first of all, where they were asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    logprobs: list[dict[str, Any]] | None
    num_input_tokens: int
    num_cached_tokens: int
    run_id: str = ""
    system_fingerprint: str | None = None
    prompt_logprobs: list[dict[str, Any]] | None = None

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> TextDelta:
        return cls(
            index=int(tensors["index"][0]),
            text=tensors["text_output"][0].decode(),
            token_ids=tuple(int(token) for token in tensors["output_ids"]),
            finish_reason=tensors["finish_reason"][0].decode() or None,
            logprobs=_logprobs(tensors, 0),
            num_input_tokens=int(tensors["num_input_tokens"][0]),
            num_cached_tokens=int(tensors["num_cached_tokens"][0]),
            system_fingerprint=fingerprint(tensors),
            prompt_logprobs=_logprobs(tensors, 0, "prompt_logprobs"),
        )


def fingerprint(tensors: Tensors) -> str | None:
    """What changes with engine, weights and version; None where the server does not say."""
    said = [value.decode() for value in tensors.get("system_fingerprint", np.empty(0, np.object_)).reshape(-1)]
    return said[0] if said else None


def _logprobs(tensors: Tensors, index: int, name: str = "logprobs") -> list[dict[str, Any]] | None:
    return json.loads(tensors[name][index]) if name in tensors else None


def text_tensors(prompt: str | Sequence[int], sampling: Mapping[str, Any], *, stream: bool) -> Tensors:
    """Inputs of `llm`; `sampling` has the names of vLLM's SamplingParams and is checked by the server.

    `max_tokens=None` is no limit but the context's; where it is left out, the limit is vLLM's 16.
    """
    try:
        parameters = json.dumps(dict(sampling))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"sampling parameters: {error}") from None
    tensors: Tensors = {
        "stream": np.array([stream]),
        "exclude_input_in_output": np.array([True]),
        "sampling_parameters": np.array([parameters.encode()], np.object_),
        **{name: np.array([True]) for name in (_STREAM_FLAGS if stream else _FLAGS)},
    }
    if sampling.get("logprobs") is not None or sampling.get("logprob_token_ids"):
        tensors["return_logprobs"] = np.array([True])
    return {**tensors, **prompt_tensors(prompt)}


def prompt_tensors(prompt: str | Sequence[int]) -> Tensors:
    """A text, or its tokens."""
    if isinstance(prompt, str):
        return {"text_input": np.array([encoded("text_input", prompt)], np.object_)}
    return {"input_ids": _token_ids(prompt)}


def _token_ids(prompt: Sequence[int]) -> np.ndarray:
    """As int32, and never another number than was given."""
    ids = np.asarray(prompt)
    if ids.size and not (np.issubdtype(ids.dtype, np.integer) and ids.ndim == 1):
        raise InvalidRequestError("input_ids: it must be a list of integers", "input_ids")
    for token in ids[(ids < 0) | (ids > _LARGEST_TOKEN)][:1] if ids.size else ():
        raise InvalidRequestError(f"input_ids: {token} is not allowed; it must be 0 to {_LARGEST_TOKEN}", "input_ids")
    return ids.astype(np.int32)
