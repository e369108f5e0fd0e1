"""Chats, completions and embeddings in OpenAI's forms; finds models by a callable."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nereid.serving.gateway import chats, completions, embeddings, texts
from nereid.serving.gateway.bodies import read_body
from nereid.serving.gateway.catalogue import Found
from nereid.serving.gateway.chat_answers import ChatAnswer
from nereid.serving.gateway.described import described
from nereid.serving.gateway.schemas import ChatBody, CompletionBody, EmbeddingBody
from nereid.serving.gateway.waiting import all_of, begin_stream, until_gone


@dataclass(frozen=True, slots=True)
class TextRoutes:
    """The handlers. `find` gives a model, its client and its places by name and kind; raises ApiError."""

    find: Callable[[str | None, str], Found]
    lenient: bool = False

    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/embeddings", self.embed, methods=["POST"]),
        ]

    @described("A chat's answer.", body=ChatBody, streams=True)
    async def chat(self, request: Request) -> Response:
        body = await read_body(request, ChatBody, self.lenient)
        model, client, places = self.find(body.model, "llm")
        chat = await chats.read_chat(body, model)
        request.state.names = chat.names
        prompt_ids = await texts.told_prompt_ids(body.return_token_ids, chat.prompt, chat.sampling, model)
        answer = ChatAnswer(
            id=_stamp("chatcmpl"),
            created=int(time.time()),
            model=model.id,
            token_ids=body.return_token_ids,
            tokens_by_ids=body.return_tokens_as_token_ids,
            prompt_ids=prompt_ids,
            prompt_logprobs=body.prompt_logprobs,
            new_stream=chat.new_stream,
            tells_reasoning=chat.tells_reasoning,
            counts_thoughts=model.counts_thoughts,
            as_function_call=chat.as_function_call,
        )
        asked = {**chat.sampling, "request_id": request.state.request_id}
        if body.stream:
            items = texts.stream(client, chat.prompt, asked, answer, body.usage_wanted)
            return await begin_stream(request, places.during(items), chat.names)
        async with places.taking():
            return JSONResponse(answer.whole(await until_gone(request, client.generate_text(chat.prompt, **asked))))

    @described("Completions of prompts.", body=CompletionBody, streams=True)
    async def complete(self, request: Request) -> Response:
        body = await read_body(request, CompletionBody, self.lenient)
        request.state.names = names = completions.completion_names(body)
        model, client, places = self.find(body.model, "llm")
        sampling = {**completions.completion_sampling(body, model), "request_id": request.state.request_id}
        asked = await completions.asked_of(body, model, sampling)
        answer = completions.CompletionAnswer(_stamp("cmpl"), int(time.time()), model.id, body)
        if body.stream:
            items = answer.stream(client, asked, sampling)
            return await begin_stream(request, places.during(items, len(asked)), names)
        async with places.taking(len(asked)):
            made = all_of([client.generate_text(item.prompt, **sampling) for item in asked])
            return JSONResponse(answer.whole(asked, await until_gone(request, made)))

    @described("Embeddings of texts.", body=EmbeddingBody)
    async def embed(self, request: Request) -> Response:
        body = await read_body(request, EmbeddingBody, self.lenient)
        model, client, places = self.find(body.model, "llm")
        asked = embeddings.embedding_asked(body, model)
        at_once = min(len(asked.prompts), places.at_once)
        async with places.taking(at_once):
            made = embeddings.embed(client, asked, request.state.request_id, at_once)
            results = await until_gone(request, made)
        answer = await asyncio.to_thread(embeddings.embeddings_answer, body, model.id, results)
        return Response(answer, media_type="application/json")


def _stamp(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
