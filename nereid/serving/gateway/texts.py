"""Text answers in OpenAI's forms: what those of chats and completions share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from nereid.serving.gateway.offered import Offered
from nereid.serving.gateway.schemas import Usage
from nereid.serving.gateway.waiting import Event
from nereid_client import AsyncClient
from nereid_client.texts import TextChoice, TextDelta

Prompt = str | list[int]


class Answer(Protocol):
    """How one endpoint words its chunks; `token_ids`: whether they tell tokens, too."""

    @property
    def token_ids(self) -> bool: ...

    @property
    def reasoning_tokens(self) -> int | None: ...

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
            fresh = delta.index not in opened
            opened.add(delta.index)
            first = answer.opening(delta.index, prompt) if fresh else None
            chunks = answer.chunks(delta)
            if usage is Usage.EACH:
                more = {"usage": usage_of(input_tokens, cached, written, answer.reasoning_tokens)}
            if first is not None:
                yield None, {**first, **more}
            for chunk in chunks:
                yield None, {**chunk, **more}
        if usage is not Usage.NONE:
            yield None, answer.usage(input_tokens, cached, written)
    finally:
        await deltas.aclose()


def usage_of(input_tokens: int, cached: int, output_tokens: int, reasoning: int | None = None) -> dict[str, Any]:
    """OpenAI's object; `reasoning` of the output's tokens are thoughts, None: they are not counted apart."""
    details = {} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
        **details,
    }


def told_ids(wanted: bool, answer: TextChoice | TextDelta) -> dict[str, Any]:
    """vLLM's `return_token_ids`."""
    return {"token_ids": list(answer.token_ids)} if wanted else {}


async def told_prompt_ids(wanted: bool, prompt: Prompt, sampling: Mapping[str, Any], model: Offered) -> dict[str, list[int]]:
    """The same of a prompt, where the model's files have its tokenizer; raises NereidError for one that cannot be read."""
    if not wanted or model.own_tokenizer is None:
        return {}
    return {"prompt_token_ids": await asyncio.to_thread(model.own_tokenizer.prompt_ids, prompt, sampling)}
