"""Text answers in OpenAI's forms: what all share, and chat completions, whole and streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

from nereid.serving.gateway.logprobs import prompt_logprobs, token_bytes
from nereid.serving.gateway.schemas import Usage
from nereid.serving.gateway.waiting import Event
from nereid_client import AsyncClient
from nereid_client.texts import TextChoice, TextDelta, TextResult

Prompt = str | list[int]


class Answer(Protocol):
    """How one endpoint words its chunks; `token_ids`: whether they tell tokens, too."""

    @property
    def token_ids(self) -> bool: ...

    def opening(self, index: int, prompt: Prompt) -> dict[str, Any] | None: ...

    def chunks(self, delta: TextDelta) -> list[dict[str, Any]]: ...

    def usage(self, input_tokens: int, cached: int, output_tokens: int) -> dict[str, Any]: ...


async def stream(
    client: AsyncClient, prompt: Prompt, sampling: dict[str, Any], answer: Answer, usage: Usage
) -> AsyncGenerator[Event, None]:
    """Chunks as (event name, body); closing the iterator cancels the request.

    Where `usage` is asked for, every chunk has the field; it is null in all but the last, or tells the usage so far.
    """
    opened: set[int] = set()
    more: dict[str, Any] = {} if usage is Usage.NONE else {"usage": None}
    input_tokens = cached = written = 0
    deltas = client.stream_text(prompt, **sampling)
    try:
        async for delta in deltas:
            input_tokens, cached = delta.num_input_tokens, delta.num_cached_tokens
            written += len(delta.token_ids)
            if usage is Usage.EACH:
                more = {"usage": usage_of(input_tokens, cached, written)}
            if delta.index not in opened:
                opened.add(delta.index)
                if (first := answer.opening(delta.index, prompt)) is not None:
                    yield None, {**first, **more}
            if delta.text or delta.finish_reason or delta.logprobs or answer.token_ids:
                for chunk in answer.chunks(delta):
                    yield None, {**chunk, **more}
        if usage is not Usage.NONE:
            yield None, answer.usage(input_tokens, cached, written)
    finally:
        await deltas.aclose()


def usage_of(input_tokens: int, cached: int, output_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def token_ids(wanted: bool, answer: TextChoice | TextDelta) -> dict[str, Any]:
    """vLLM's `return_token_ids`."""
    return {"token_ids": list(answer.token_ids)} if wanted else {}


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """/v1/chat/completions."""

    id: str
    created: int
    model: str
    token_ids: bool = False
    prompt_logprobs: int | None = None

    def whole(self, result: TextResult) -> dict[str, Any]:
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": choice.index,
                    "message": {"role": "assistant", "content": choice.text},
                    "logprobs": self._logprobs(choice.logprobs),
                    "finish_reason": choice.finish_reason,
                    **token_ids(self.token_ids, choice),
                }
                for choice in result.choices
            ],
            "usage": usage_of(result.num_input_tokens, result.num_cached_tokens, result.num_output_tokens),
            **self._told_of_prompt(result),
        }

    def _told_of_prompt(self, result: TextResult) -> dict[str, Any]:
        """vLLM's field, where it is asked for."""
        top, scores = self.prompt_logprobs, result.prompt_logprobs
        return {} if top is None or scores is None else {"prompt_logprobs": prompt_logprobs(scores, top)}

    def opening(self, index: int, prompt: Prompt) -> dict[str, Any] | None:
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def chunks(self, delta: TextDelta) -> list[dict[str, Any]]:
        """As OpenAI does it, the reason comes in a chunk of its own, whose delta is empty: some clients read no text there."""
        made = []
        if delta.text or delta.logprobs or (self.token_ids and delta.token_ids):
            chunk = self._chunk(delta.index, {"content": delta.text}, delta.logprobs, None)
            chunk["choices"][0] |= token_ids(self.token_ids, delta)
            made.append(chunk)
        if delta.finish_reason:
            made.append(self._chunk(delta.index, {}, None, delta.finish_reason))
        return made

    def usage(self, input_tokens: int, cached: int, output_tokens: int) -> dict[str, Any]:
        usage = usage_of(input_tokens, cached, output_tokens)
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: list[dict[str, Any]] | None, reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(logprobs), "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    @staticmethod
    def _logprobs(found: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        if found is None:
            return None

        def entry(item: dict[str, Any]) -> dict[str, Any]:
            return {"token": item["token"], "logprob": item["logprob"], "bytes": list(token_bytes(item))}

        return {"content": [{**entry(item), "top_logprobs": [entry(other) for other in item["top"]]} for item in found]}
