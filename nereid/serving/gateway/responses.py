"""The routes of /v1/responses: answers made, streamed, kept, asked for again; what they are made of is elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nereid.serving.gateway.bodies import read_body
from nereid.serving.gateway.catalogue import Found
from nereid.serving.gateway.chats import ChatAsked, read_chat
from nereid.serving.gateway.described import described
from nereid.serving.gateway.errors import ApiError, from_nereid
from nereid.serving.gateway.guard import owner_of
from nereid.serving.gateway.offered import Offered
from nereid.serving.gateway.paging import page, paged
from nereid.serving.gateway.response_bodies import Kept, ResponsesBody
from nereid.serving.gateway.response_events import ResponseAnswer, new_id
from nereid.serving.gateway.response_items import NAMES, chat_body, check_calls, items_of, resolved
from nereid.serving.gateway.response_store import ResponseStore, Stored
from nereid.serving.gateway.response_truncation import fitted_chat
from nereid.serving.gateway.waiting import Event, begin_stream, until_gone
from nereid_client import AsyncClient
from nereid_client.errors import NereidError

_MOST_ITEMS = 100
"""In one page of a list, as in OpenAI's API."""


@dataclass(slots=True, eq=False)
class Responses:
    """`find` gives a model of a kind, its client and its places; raises ApiError."""

    store: ResponseStore
    find: Callable[[str | None, str], Found]
    lenient: bool

    @described("An answer to a conversation's items.", body=ResponsesBody, streams=True)
    async def create(self, request: Request) -> Response:
        body = await read_body(request, ResponsesBody, self.lenient)
        model, client, places = self.find(body.model, "llm")
        before, sent, chat = await self._asked(request, body, model)
        names = request.state.names
        answer = ResponseAnswer(_head(body, model), chat.new_stream())
        asked = {**chat.sampling, "request_id": request.state.request_id}

        def keep() -> None:
            if body.store:
                given = [_with_id(item.model_dump(exclude_none=True)) for item in sent]
                response = answer.response(answer.status)
                self.store.keep(owner_of(request), Stored(response, given, [*before, *given, *response["output"]]))

        if body.stream:
            items = _stream(client, chat, asked, answer, keep)
            return await begin_stream(request, places.during(items), names, ends_with_done=False)
        async with places.taking():
            made = await until_gone(request, client.generate_text(chat.prompt, **asked))
        (choice,) = made.choices
        for _ in answer.take(choice.text, choice.finish_reason, choice.logprobs, choice.token_ids):
            pass
        counts = made.num_input_tokens, made.num_cached_tokens, made.num_output_tokens
        for _ in answer.end(_usage(*counts, answer.stream.reasoning_tokens)):
            pass
        keep()
        return JSONResponse(answer.response(answer.status))

    @described("How many tokens an answer's input has.", body=ResponsesBody)
    async def count(self, request: Request) -> Response:
        """With all that a template writes around it; nothing is answered or kept."""
        body = await read_body(request, ResponsesBody, self.lenient)
        for name, value in (("stream", body.stream), ("truncate_prompt_tokens", body.truncate_prompt_tokens)):
            if value:
                sentence = f"{name}: {value!r} is not allowed where tokens are counted; it must be absent"
                raise ApiError(400, sentence, param=name, code="unsupported_parameter")
        model, _, places = self.find(body.model, "llm")
        async with places.taking_to_count():
            _, _, chat = await self._asked(request, body, model)
            tokens = await asyncio.to_thread(chat.tokens, model)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(tokens)})

    @described("A kept answer.", query={"stream": {"const": "false"}})
    async def show(self, request: Request) -> Response:
        for name in ("stream", "starting_after"):
            value = request.query_params.get(name, "")
            if value not in (("", "false") if name == "stream" else ("",)):
                sentence = f"{name}: {value[:80]!r} is not allowed; a kept answer is told as a whole, and it must be absent"
                raise ApiError(400, sentence, param=name, code="unsupported_parameter")
        return JSONResponse(self._stored(request).response)

    @described("What a kept answer answers.", query=paged(_MOST_ITEMS))
    async def show_input(self, request: Request) -> Response:
        newest_first = self._stored(request).given[::-1]
        return JSONResponse(page(request.query_params, newest_first, lambda item: str(item["id"]), dict[str, Any], _MOST_ITEMS))

    @described("Forgets a kept answer.")
    async def delete(self, request: Request) -> Response:
        found = self._stored(request).response["id"]
        self.store.remove(owner_of(request), found)
        return JSONResponse({"id": found, "object": "response", "deleted": True})

    async def _asked(
        self, request: Request, body: ResponsesBody, model: Offered
    ) -> tuple[list[dict[str, Any]], list[Kept], ChatAsked]:
        """What is kept of the conversation, what was sent of it, and the chat that they make; raises ApiError."""
        key = owner_of(request)
        before = self._before(key, body.previous_response_id)
        request.state.names = NAMES.of_inputs({"text_input": "messages"})
        try:
            sent = resolved(body.given, lambda identity: self.store.find_item(key, identity))
            earlier = items_of(before)
            check_calls(sent, earlier)
            conversation = [*earlier, *sent]
            if body.truncation == "auto":
                chat = await fitted_chat(body, conversation, model)
            else:
                chat = await read_chat(chat_body(body, conversation), model)
        except ApiError as error:
            raise NAMES.refusal(error) from None
        request.state.names = NAMES.of_inputs(chat.names)
        return before, sent, chat

    def _before(self, key: str, identity: str | None) -> list[dict[str, Any]]:
        if identity is None:
            return []
        stored = self.store.find(key, identity)
        if stored is None:
            raise ApiError(
                400,
                f"previous_response_id: {identity[:80]!r} is not kept here; send the conversation as input",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return list(stored.conversation)

    def _stored(self, request: Request) -> Stored:
        identity = request.path_params["id"]
        stored = self.store.find(owner_of(request), identity)
        if stored is None:
            raise ApiError(404, f"response_id: {identity[:80]!r} is not kept here", param="response_id", code="not_found")
        return stored


def _with_id(item: dict[str, Any]) -> dict[str, Any]:
    return item if "id" in item else {**item, "id": new_id("item")}


async def _stream(
    client: AsyncClient, chat: ChatAsked, asked: dict[str, Any], answer: ResponseAnswer, keep: Callable[[], None]
) -> AsyncGenerator[Event, None]:
    """Nothing is told before the first piece is there, so that a request that is refused is refused as a whole."""
    deltas = client.stream_text(chat.prompt, **asked)
    begun, told, cached, written = False, 0, 0, 0
    try:
        async for delta in deltas:
            told, cached = delta.num_input_tokens, delta.num_cached_tokens
            written += len(delta.token_ids)
            if not begun:
                begun = True
                for event in answer.begin():
                    yield event["type"], event
            for event in answer.take_delta(delta):
                yield event["type"], event
        *rest, last = answer.end(_usage(told, cached, written, answer.stream.reasoning_tokens))
        for event in rest:
            yield event["type"], event
        keep()
        yield last["type"], last
    except NereidError as error:
        if not begun:
            raise
        for event in answer.fail(from_nereid(error, NAMES.of_inputs(chat.names)).message):
            yield event["type"], event
    finally:
        await deltas.aclose()


def _usage(input_tokens: int, cached: int, output_tokens: int, reasoning: int) -> dict[str, Any]:
    """`reasoning` of the output's tokens are thoughts; 0 where they are not counted."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_tokens + output_tokens,
    }


def _head(body: ResponsesBody, model: Offered) -> dict[str, Any]:
    """What was asked for, as OpenAI repeats it."""
    tools = [
        {**({"parameters": None, "strict": False} if tool.type == "function" else {}), **tool.model_dump(exclude_none=True)}
        for tool in body.tools or ()
    ]
    choice = body.tool_choice or "auto"
    reasoning = body.reasoning.model_dump(include={"effort", "summary"}) if body.reasoning else {"effort": None, "summary": None}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "model": model.id,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": reasoning,
        "service_tier": "default",
        "store": body.store,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": body.text.format.model_dump(exclude_none=True, by_alias=True)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation,
        "usage": None,
    }
