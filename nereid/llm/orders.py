"""What crosses between a language model's answering side and its worker: orders there, deltas back; knows neither side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.engines.channel import Message
from nereid.flow.tickets import USUAL_PRIORITY
from nereid.llm.prompt_scores import read_scores
from nereid.llm.requests import LlmRequest, StructureRequest
from nereid.llm.sampling import Sampling
from nereid.llm.sequences import Delta, FinishReason, TokenLogprob

START, DROP = "start", "drop"
TOKENS, REFUSED, METRIC = "tokens", "refused", "metric"
_ARRAYS = ("prompt", "allowed_token_ids")
"""What of an order may be long, and goes as arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """All that decides which tokens are drawn, concrete: one request's prompt, and how each of its answers is drawn.

    `priority` decides when.
    """

    prompt: tuple[int, ...]
    samplings: tuple[Sampling, ...]
    max_tokens: int
    min_tokens: int
    stop_ids: tuple[int, ...]
    allowed_token_ids: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]
    scored: bool
    top_logprobs: int
    logprob_token_ids: tuple[int, ...]
    prompt_logprobs: int | None
    embeds: bool
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    structure: StructureRequest | None
    speculation: str
    adapter: int = 0
    cache_salt: str = ""
    priority: int = USUAL_PRIORITY
    request_id: str = ""

    @classmethod
    def of(cls, request: LlmRequest, request_id: str = "") -> Order:
        return cls(
            prompt=request.prompt,
            samplings=request.samplings,
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            stop_ids=tuple(sorted(request.stop_ids)),
            allowed_token_ids=request.allowed_token_ids,
            bad_words=request.bad_words,
            scored=request.scored,
            top_logprobs=request.top_logprobs,
            logprob_token_ids=request.logprob_token_ids,
            prompt_logprobs=request.prompt_logprobs,
            embeds=request.embeds,
            stop=request.stop,
            include_stop=request.include_stop,
            skip_special_tokens=request.skip_special_tokens,
            structure=request.structure,
            speculation=request.speculation,
            adapter=request.adapter,
            cache_salt=request.cache_salt,
            priority=request.priority,
            request_id=request_id,
        )

    def message(self, task: int) -> Message:
        """The order to begin, under a number that deltas will name."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in (*_ARRAYS, "samplings")}
        plain["structure"] = None if self.structure is None else asdict(self.structure)
        samplings = [{**asdict(s), "logit_bias": list(s.logit_bias.items())} for s in self.samplings]
        arrays = {name: np.array(getattr(self, name), np.int32) for name in _ARRAYS}
        return Message(START, {"task": task, "samplings": samplings, **plain}, arrays)

    @classmethod
    def read(cls, message: Message) -> Order:
        body: dict[str, Any] = {name: message.body[name] for name in cls.__slots__ if name not in _ARRAYS}
        body |= {name: tuple(message.arrays[name].tolist()) for name in _ARRAYS}
        body["samplings"] = tuple(Sampling(**{**s, "logit_bias": dict(s["logit_bias"])}) for s in body["samplings"])
        for name in ("stop_ids", "stop", "logprob_token_ids"):
            body[name] = tuple(body[name])
        body["bad_words"] = tuple(tuple(word) for word in body["bad_words"])
        body["structure"] = None if body["structure"] is None else StructureRequest(**body["structure"])
        return cls(**body)


def deltas(entries: Sequence[tuple[int, int, int, Delta]]) -> Message:
    """What was drawn: tasks, answers, tokens found in the prefix cache, and deltas."""
    packed = [(task, index, cached, _pack_delta(delta)) for task, index, cached, delta in entries]
    arrays = {f"{task}.{index}": delta.embedding for task, index, _, delta in entries if delta.embedding is not None}
    return Message(TOKENS, {"deltas": packed}, arrays)


def read_deltas(message: Message) -> Iterator[tuple[int, int, int, Delta]]:
    """The same, as it has arrived."""
    for task, index, cached, raw in message.body["deltas"]:
        yield task, index, cached, _read_delta(raw, message.arrays.get(f"{task}.{index}"))


def _pack_delta(delta: Delta) -> list[Any]:
    logprobs = [(item.token, item.logprob, item.top) for item in delta.logprobs]
    return [delta.tokens, logprobs, delta.finish_reason, delta.text, delta.prompt_logprobs]


def _read_delta(raw: list[Any], embedding: NDArray[np.float32] | None) -> Delta:
    tokens, logprobs, reason, text, prompt = raw
    read = (TokenLogprob(token, own, tuple((int(i), float(v)) for i, v in top)) for token, own, top in logprobs)
    scores = None if prompt is None else read_scores(prompt)
    embedding = None if embedding is None else embedding.copy()  # it is a view of the whole message
    return Delta(tuple(tokens), tuple(read), None if reason is None else FinishReason(reason), text, scores, embedding)


def drop(task: int) -> Message:
    return Message(DROP, {"task": task})


def metric(name: str, value: float, labels: Mapping[str, str]) -> Message:
    return Message(METRIC, {"name": name, "value": value, "labels": dict(labels)})
