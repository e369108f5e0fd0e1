"""Text answers streamed in OpenAI's forms, and those of /v1/completions; chats are in chat_answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.logprobs import Offsets, completion_logprobs
from nereid.serving.gateway.schemas import CompletionBody, Usage
from nereid.serving.gateway.waiting import Event
from nereid_client import AsyncClient
from nereid_client.texts import TextChoice, TextDelta, TextResult

Prompt = str | list[int]


def completion_names(body: CompletionBody) -> dict[str, str]:
    """The caller's names of `llm`'s inputs, for errors."""
    names = {"text_input": "prompt", "input_ids": "prompt", **body.names}
    return names if body.best_of is None else {**names, "n": "best_of"}


def completion_sampling(body: CompletionBody) -> dict[str, Any]:
    """A completion body as sampling parameters of `llm`."""
    logprobs = {} if body.logprobs is None else {"logprobs": body.logprobs}
    if body.drawn < body.n:
        raise ApiError(400, f"best_of: {body.drawn} is not allowed; it must be at least n, {body.n}", param="best_of")
    if body.stream and body.drawn > body.n:
        raise ApiError(400, f"best_of: {body.drawn} answers cannot be streamed; it must be n, {body.n}", param="best_of")
    return {**body.sampling(), **logprobs, "n": body.drawn, "max_tokens": body.max_tokens}


def prompts_of(body: CompletionBody) -> list[Prompt]:
    """`prompt` in its four forms as a list of texts or token ids."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if body.echo and not all(isinstance(item, str) for item in prompt):
        raise ApiError(400, "echo: true is not allowed with token ids; it needs a prompt of text", param="echo")
    if not prompt or len(prompt) > 1_000_000:
        raise ApiError(400, "prompt: must be a text, token ids, or a list of one of them", param="prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > 64:
        raise ApiError(400, f"prompt: {len(prompt)} prompts; at most 64 are allowed", param="prompt")
    return list(prompt)


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
    """OpenAI's object."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def told_ids(wanted: bool, answer: TextChoice | TextDelta) -> dict[str, Any]:
    """vLLM's `return_token_ids`."""
    return {"token_ids": list(answer.token_ids)} if wanted else {}


def _likeliest(choices: Sequence[TextChoice], told: int) -> Sequence[TextChoice]:
    """Of more answers than are told those with the highest log probability a token, as OpenAI's `best_of` does."""
    if len(choices) <= told:
        return choices
    return sorted(choices, key=lambda choice: -choice.cumulative_logprob / max(1, len(choice.token_ids)))[:told]


@dataclass(frozen=True, slots=True)
class CompletionAnswer:
    """/v1/completions."""

    id: str
    created: int
    model: str
    echo: bool
    told: int = 1
    token_ids: bool = False
    _offsets: dict[int, Offsets] = field(default_factory=dict)

    def whole_of(self, prompts: Sequence[Prompt], results: Sequence[TextResult]) -> dict[str, Any]:
        """All choices of all prompts, numbered through."""
        choices: list[dict[str, Any]] = []
        for prompt, result in zip(prompts, results, strict=True):
            lead = str(prompt) if self.echo else ""
            best = _likeliest(result.choices, self.told)
            choices += [self._choice(len(choices) + i, choice, lead) for i, choice in enumerate(best)]
        usage = usage_of(
            sum(result.num_input_tokens for result in results),
            sum(result.num_cached_tokens for result in results),
            sum(result.num_output_tokens for result in results),
        )
        return {**self._head(), "choices": choices, "usage": usage}

    def _choice(self, index: int, choice: TextChoice, lead: str) -> dict[str, Any]:
        return {
            "index": index,
            "text": lead + choice.text,
            "logprobs": completion_logprobs(choice.logprobs, Offsets(len(lead))),
            "finish_reason": choice.finish_reason,
            **told_ids(self.token_ids, choice),
        }

    def opening(self, index: int, prompt: Prompt) -> dict[str, Any] | None:
        self._offsets[index] = Offsets(len(prompt) if self.echo else 0)
        if not self.echo:
            return None
        return {**self._head(), "choices": [{"index": index, "text": prompt, "logprobs": None, "finish_reason": None}]}

    def chunks(self, delta: TextDelta) -> list[dict[str, Any]]:
        choice = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": completion_logprobs(delta.logprobs, self._offsets[delta.index]),
            "finish_reason": delta.finish_reason,
            **told_ids(self.token_ids, delta),
        }
        return [{**self._head(), "choices": [choice]}]

    def usage(self, input_tokens: int, cached: int, output_tokens: int) -> dict[str, Any]:
        return {**self._head(), "choices": [], "usage": usage_of(input_tokens, cached, output_tokens)}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
