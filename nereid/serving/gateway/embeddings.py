"""/v1/embeddings in OpenAI's form, chats in vLLM's: of each the mean of its last hidden states, where an export kept them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nereid.serving.gateway.chats import embedded_prompt
from nereid.serving.gateway.errors import ApiError, from_nereid
from nereid.serving.gateway.offered import Offered
from nereid.serving.gateway.schemas import EmbeddingBody
from nereid.serving.gateway.texts import Prompt
from nereid.serving.gateway.waiting import some_of
from nereid_client import AsyncClient
from nereid_client.embeddings import EmbeddingResult
from nereid_client.errors import NereidError

MOST_INPUTS = 2048
"""As many as OpenAI's API takes in a request."""
_OF_MESSAGES = ("chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
MOST_NUMBERS = 2**22
"""Of an answer, all of its embeddings together: they are in memory until it is sent."""


@dataclass(frozen=True, slots=True)
class EmbeddingAsked:
    """A body's inputs and options, as `llm` gets them."""

    prompts: Sequence[Prompt]
    options: dict[str, Any]
    names: Sequence[str]
    """The callers' names of the prompts: of a list's the places in it."""


def embedding_asked(body: EmbeddingBody, model: Offered) -> EmbeddingAsked:
    """Raises ApiError, 404 where the model's export kept no hidden states."""
    width = model.embedding_width
    if not width:
        sentence = f"{model.id!r} gives no embeddings; it was exported without --embeddings"
        raise ApiError(404, f"model: {sentence}", param="model", code="model_not_found")
    if body.dimensions not in (None, width):
        sentence = f"{body.dimensions} is not allowed; it must be {width}, as many as {model.id!r} gives, or absent"
        raise ApiError(400, f"dimensions: {sentence}", param="dimensions")
    options = model.adapted(body.options())
    if body.messages is not None:
        if body.input is not None:
            raise ApiError(400, "messages: it is not allowed with input; one of them must be absent", param="messages")
        if model.whole_templates:
            options.setdefault("add_special_tokens", False)
        return EmbeddingAsked([embedded_prompt(body, body.messages, model)], options, ["messages"])
    for name in _OF_MESSAGES:
        if getattr(body, name):
            raise ApiError(400, f"{name}: it is not allowed with input; it must come with messages, or be absent", param=name)
    if body.input is None:
        raise ApiError(400, "input: it is missing", param="input", code="missing_required_parameter")
    prompts = _prompts_of(body.input, min(MOST_INPUTS, MOST_NUMBERS // width))
    several = prompts != [body.input]
    return EmbeddingAsked(prompts, options, [f"input.{place}" if several else "input" for place in range(len(prompts))])


def _prompts_of(sent: str | list[Any], most: int) -> list[Prompt]:
    if isinstance(sent, str) or (sent and isinstance(sent[0], int)):
        return [sent]
    if not 0 < len(sent) <= most:
        raise ApiError(400, f"input: a list of {len(sent)} is not allowed; it must be 1 to {most} inputs", param="input")
    return list(sent)


async def embed(client: AsyncClient, asked: EmbeddingAsked, request_id: str, at_once: int) -> list[EmbeddingResult]:
    """All inputs, `at_once` of them together; raises ApiError that names the input which is refused."""

    async def one(place: int, prompt: Prompt) -> EmbeddingResult:
        name = asked.names[place]
        try:
            return await client.embed_text(prompt, request_id=request_id, **asked.options)
        except NereidError as error:
            raise from_nereid(error, {"text_input": name, "input_ids": name}) from None

    return await some_of([partial(one, place, prompt) for place, prompt in enumerate(asked.prompts)], at_once)


def embeddings_answer(body: EmbeddingBody, model: str, results: Sequence[EmbeddingResult]) -> bytes:
    """OpenAI's object as JSON, made one embedding after the other: other threads must not wait for millions of numbers."""
    data = [
        _json({"object": "embedding", "index": place, "embedding": _written(result, body.encoding_format)})
        for place, result in enumerate(results)
    ]
    tokens = sum(result.num_input_tokens for result in results)
    rest = _json({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return f'{{"object":"list","data":[{",".join(data)}],{rest[1:]}'.encode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _written(result: EmbeddingResult, form: str) -> str | list[float]:
    """Numbers, or the bytes of little-endian float32 in base64."""
    if form == "base64":
        return base64.b64encode(result.embedding.astype("<f4").tobytes()).decode()
    return list(result.embedding.tolist())
