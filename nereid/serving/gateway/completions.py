"""Completions in OpenAI's form, whole and streamed, of one prompt or several, given back with their probabilities if wanted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.infill import Infill
from nereid.serving.gateway.logprobs import NO_LOGPROBS, Offsets, by_ids, completion_logprobs, prompt_logprobs
from nereid.serving.gateway.merging import merged
from nereid.serving.gateway.offered import Offered
from nereid.serving.gateway.response_formats import names_of_answer, schema_of_answer
from nereid.serving.gateway.schemas import CompletionBody, Usage
from nereid.serving.gateway.texts import Prompt, told_ids, told_prompt_ids, usage_of
from nereid.serving.gateway.waiting import Event
from nereid_client import AsyncClient
from nereid_client.texts import TextChoice, TextDelta, TextResult

MOST_PROMPTS = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt as `llm` gets it, and the text that stands before its answers, where the prompt is given back.

    `told` is told of it in its answers.
    """

    prompt: Prompt
    lead: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)


def completion_names(body: CompletionBody) -> dict[str, str]:
    """The caller's names of `llm`'s inputs, for errors."""
    names = {"text_input": "prompt", "input_ids": "prompt", **body.names}
    if body.echo and body.logprobs is not None:
        names["prompt_logprobs"] = "logprobs"
    if body.response_format is not None:
        names |= names_of_answer(body)
    return names if body.best_of is None else {**names, "n": "best_of"}


def completion_sampling(body: CompletionBody, model: Offered) -> dict[str, Any]:
    """A completion body as sampling parameters of `llm`; raises ApiError."""
    if body.drawn < body.n:
        raise ApiError(400, f"best_of: {body.drawn} is not allowed; it must be at least n, {body.n}", param="best_of")
    if body.stream and body.drawn > body.n:
        raise ApiError(400, f"best_of: {body.drawn} answers cannot be streamed; it must be n, {body.n}", param="best_of")
    made = {**body.sampling(), "n": body.drawn, "max_tokens": body.max_tokens}
    if body.logprob_token_ids and body.logprobs is None:
        raise ApiError(400, NO_LOGPROBS, param="logprob_token_ids")
    if body.logprobs is not None:
        made["logprobs"] = body.logprobs
        if body.echo:
            made["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
    if (schema := schema_of_answer(body)) is not None:
        made["structured_outputs"] = {"json": schema}
    return model.adapted(made)


async def asked_of(body: CompletionBody, model: Offered, sampling: dict[str, Any]) -> list[Asked]:
    """`prompt` in its four forms as what `llm` gets; where a suffix is given, tokens that end its answer go into `sampling`.

    Raises ApiError.
    """
    asked = await _asked(body, model, sampling)
    return [replace(item, told=await told_prompt_ids(body.return_token_ids, item.prompt, sampling, model)) for item in asked]


async def _asked(body: CompletionBody, model: Offered, sampling: dict[str, Any]) -> list[Asked]:
    prompts = _prompts_of(body)
    if body.suffix:
        return await _infilled(body, prompts, model, sampling)
    if not body.echo:
        return [Asked(prompt) for prompt in prompts]
    if body.truncate_prompt_tokens is not None:
        raise _with_truncation("echo true")
    return [Asked(prompt, prompt if isinstance(prompt, str) else await _decoded(prompt, model)) for prompt in prompts]


def _prompts_of(body: CompletionBody) -> list[Prompt]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt or len(prompt) > 1_000_000:
        raise ApiError(400, "prompt: must be a text, token ids, or a list of one of them", param="prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > MOST_PROMPTS:
        raise ApiError(400, f"prompt: {len(prompt)} prompts; at most {MOST_PROMPTS} are allowed", param="prompt")
    return list(prompt)


def _with_truncation(beside: str) -> ApiError:
    sentence = f"truncate_prompt_tokens: it is not allowed with {beside}; one of them must be absent"
    return ApiError(400, sentence, param="truncate_prompt_tokens")


async def _decoded(tokens: list[int], model: Offered) -> str:
    """Special tokens included; more tokens than the context holds are left to `llm` to refuse."""
    if model.max_model_len is not None and len(tokens) > model.max_model_len:
        return ""
    return await asyncio.to_thread(model.tokenizer.decode, tokens)


async def _infilled(body: CompletionBody, prompts: Sequence[Prompt], model: Offered, sampling: dict[str, Any]) -> list[Asked]:
    """What stands between each prompt and the suffix is asked for."""
    if body.truncate_prompt_tokens is not None:
        raise _with_truncation("a suffix")
    if body.echo:
        raise ApiError(400, "suffix: it is not allowed with echo true; one of them must be absent", param="suffix")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise ApiError(400, "suffix: it is not allowed with a prompt of token ids; the prompt must be a text", param="suffix")
    infill = await asyncio.to_thread(Infill.of, model.tokenizer)
    if infill is None:
        sentence = f"this field is not supported by {model.id!r}, whose tokenizer has no fill-in-the-middle tokens"
        raise ApiError(400, f"suffix: {sentence}", param="suffix", code="unsupported_parameter")
    sampling["stop_token_ids"] = [*sampling.get("stop_token_ids", ()), *infill.ends]
    special = sampling.get("add_special_tokens", True)
    made = []
    for text in texts:
        made.append(Asked(await asyncio.to_thread(infill.prompt, text, body.suffix or "", special)))
    return made


def _likeliest(choices: Sequence[TextChoice], told: int) -> Sequence[TextChoice]:
    """Of more answers than are told those with the highest log probability a token, as OpenAI's `best_of` does."""
    if len(choices) <= told:
        return choices
    return sorted(choices, key=lambda choice: -choice.cumulative_logprob / max(1, len(choice.token_ids)))[:told]


@dataclass(slots=True)
class _Written:
    """One choice of a stream so far."""

    offsets: Offsets
    opened: bool = False


@dataclass(frozen=True, slots=True)
class CompletionAnswer:
    """/v1/completions of one body."""

    id: str
    created: int
    model: str
    body: CompletionBody
    _scores: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Of a stream's prompts, by their places."""
    _choices: dict[int, _Written] = field(default_factory=dict)

    def whole(self, asked: Sequence[Asked], results: Sequence[TextResult]) -> dict[str, Any]:
        """All choices of all prompts, numbered through."""
        choices: list[dict[str, Any]] = []
        for item, result in zip(asked, results, strict=True):
            best = _likeliest(result.choices, self.body.n)
            choices += [self._choice(len(choices) + i, choice, item, result) for i, choice in enumerate(best)]
        usage = usage_of(
            sum(result.num_input_tokens for result in results),
            sum(result.num_cached_tokens for result in results),
            sum(result.num_output_tokens for result in results),
        )
        return {**self._head(), "choices": choices, "usage": usage}

    def _choice(self, index: int, choice: TextChoice, asked: Asked, result: TextResult) -> dict[str, Any]:
        scores, lead = result.prompt_logprobs, asked.lead
        return {
            "index": index,
            "text": lead + choice.text,
            "logprobs": self._logprobs(choice.logprobs, Offsets(len(lead)), scores if self.body.echo else None),
            "finish_reason": choice.finish_reason,
            **told_ids(self.body.return_token_ids, choice),
            **self._told_of(asked, scores),
        }

    async def stream(
        self, client: AsyncClient, asked: Sequence[Asked], sampling: Mapping[str, Any]
    ) -> AsyncGenerator[Event, None]:
        """Chunks of all prompts' answers as they come; closing the iterator cancels the requests.

        Where `usage` is asked for, every chunk has the field; it is null in all but the last, or tells the usage so far.
        """
        usage = self.body.usage_wanted
        more: dict[str, Any] = {} if usage is Usage.NONE else {"usage": None}
        read: dict[int, tuple[int, int]] = {}
        written = 0
        deltas = merged([client.stream_text(item.prompt, **sampling) for item in asked])
        async with contextlib.aclosing(deltas):
            async for place, delta in deltas:
                read[place] = delta.num_input_tokens, delta.num_cached_tokens
                written += len(delta.token_ids)
                if usage is Usage.EACH:
                    more = {"usage": _total(read, written)}
                for chunk in self._chunks(place, asked[place], delta):
                    yield None, {**chunk, **more}
        if usage is not Usage.NONE:
            yield None, {**self._head(), "choices": [], "usage": _total(read, written)}

    def _chunks(self, place: int, asked: Asked, delta: TextDelta) -> list[dict[str, Any]]:
        index = place * self.body.n + delta.index
        if delta.prompt_logprobs is not None:
            self._scores[place] = delta.prompt_logprobs
        state = self._choices.setdefault(index, _Written(Offsets(len(asked.lead))))
        made = []
        if not state.opened:
            state.opened = True
            made += self._opening(index, asked, self._scores.get(place))
        if delta.text or delta.finish_reason or delta.logprobs or self.body.return_token_ids:
            logprobs = self._logprobs(delta.logprobs, state.offsets)
            made.append(
                self._chunk(index, delta.text, logprobs, delta.finish_reason, **told_ids(self.body.return_token_ids, delta))
            )
        return made

    def _opening(self, index: int, asked: Asked, scores: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
        """A choice's first chunk, where there is something to tell of its prompt."""
        told = self._told_of(asked, scores)
        if not (self.body.echo or told):
            return []
        logprobs = None if scores is None or not self.body.echo else self._logprobs([], Offsets(0), scores)
        return [self._chunk(index, asked.lead, logprobs, None, **told)]

    def _logprobs(
        self, found: list[dict[str, Any]] | None, offsets: Offsets, scores: list[dict[str, Any]] | None = None
    ) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        if self.body.return_tokens_as_token_ids:
            found, scores = None if found is None else by_ids(found), by_ids(scores or ())
        return completion_logprobs(found, offsets, scores or (), self.body.logprobs)

    def _told_of(self, asked: Asked, scores: list[dict[str, Any]] | None) -> dict[str, Any]:
        """vLLM's fields, where they are asked for."""
        top = self.body.prompt_logprobs
        scored = {} if top is None or scores is None else {"prompt_logprobs": prompt_logprobs(scores, top)}
        return {**scored, **asked.told}

    def _chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None, **more: Any) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, **more}
        return {**self._head(), "choices": [choice]}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}


def _total(read: Mapping[int, tuple[int, int]], written: int) -> dict[str, Any]:
    return usage_of(sum(tokens for tokens, _ in read.values()), sum(cached for _, cached in read.values()), written)
