"""The gateway's routes: OpenAI's bodies in, requests of the SDK out, answers back, streamed where asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nereid.engines.digests import own_version
from nereid.serving.gateway import chats, completions, images, texts, tokenizing
from nereid.serving.gateway.batches.load import Watched
from nereid.serving.gateway.batches.runner import Pace
from nereid.serving.gateway.batches.service import Batches
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.bodies import read_body
from nereid.serving.gateway.chat_answers import ChatAnswer
from nereid.serving.gateway.described import described
from nereid.serving.gateway.draining import Drain, Drained
from nereid.serving.gateway.errors import ApiError, from_nereid
from nereid.serving.gateway.guard import Guard, asked_by
from nereid.serving.gateway.keys import Keys
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.metrics import GatewayMetrics
from nereid.serving.gateway.observing import IGNORED_HEADER, REQUEST_ID_HEADER, Observed
from nereid.serving.gateway.openapi import openapi_of
from nereid.serving.gateway.places import Places, places_of
from nereid.serving.gateway.readiness import readiness
from nereid.serving.gateway.repository import Offered, offered_models
from nereid.serving.gateway.response_store import ResponseStore
from nereid.serving.gateway.responses import Responses
from nereid.serving.gateway.schemas import ChatBody, CompletionBody, ImageBody
from nereid.serving.gateway.waiting import all_of, begin_stream, until_gone
from nereid_client import AsyncClient
from nereid_client.errors import NereidError

log = logging.getLogger("nereid.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What the gateway stands before. `api_key` empty: everybody may ask."""

    repository: Path
    grpc_url: str
    metrics_url: str
    ready_url: str
    api_key: str = field(default="", repr=False)
    max_body_bytes: int = 4 * 2**20
    max_file_bytes: int = 200 * 2**20
    rules: Rules = field(default_factory=Rules)


def create_app(settings: GatewaySettings, drain: Drain | None = None) -> Starlette:
    """The ASGI application; `drain` knows when it is to end."""
    models = offered_models(settings.repository, settings.rules)
    places = {model.id: places_of(settings.repository, model.holder) for model in models.values()}
    clients: dict[str, AsyncClient] = {}
    keys = Keys.of(settings.api_key, Path(settings.rules.keys) if settings.rules.keys else None)
    lenient = settings.rules.lenient
    metrics = GatewayMetrics()
    handlers: dict[Any, Any] = dict.fromkeys((ApiError, NereidError, HTTPException), _refuse)
    batches = _batches(settings, max((place.at_once for place in places.values()), default=1))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for prefix in {model.prefix for model in models.values()}:
            # A full queue is told at once: callers try again as they like, and know how long they wait.
            clients[prefix] = AsyncClient(settings.grpc_url, name=prefix, retry_full=False)
        metrics.watch({prefix: client.statistics for prefix, client in clients.items()})
        async with batches.running() if batches is not None else contextlib.nullcontext():
            yield
        for client in clients.values():
            await client.close()

    def find(name: str, kind: str) -> tuple[Offered, AsyncClient]:
        model = models.get(name)
        if model is None or model.kind != kind:
            known = ", ".join(item.id for item in models.values() if item.kind == kind) or "none"
            raise ApiError(
                404, f"model: {name!r} is not one of those served here: {known}", param="model", code="model_not_found"
            )
        return model, clients[model.prefix]

    def only(kind: str) -> str:
        """The one model of a kind, which need not be named."""
        found = [model.id for model in models.values() if model.kind == kind]
        if len(found) == 1:
            return found[0]
        known = ", ".join(found) or "none"
        raise ApiError(400, f"model: it is missing; it must be one of those served here: {known}", param="model")

    @described("The models that are served.")
    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(item) for item in models.values()]})

    @described("One model.")
    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models:
            raise ApiError(404, f"model: {name!r} is not served here", param="model", code="model_not_found")
        return JSONResponse(_model(models[name]))

    @described("A chat's answer.", body=ChatBody, streams=True)
    async def chat(request: Request) -> Response:
        body = await read_body(request, ChatBody, lenient)
        model, client = find(body.model, "llm")
        chat = await chats.read_chat(body, model)
        request.state.names = chat.names
        answer = ChatAnswer(
            id=_stamp("chatcmpl"),
            created=int(time.time()),
            model=model.id,
            token_ids=body.return_token_ids,
            prompt_logprobs=body.prompt_logprobs,
            new_stream=chat.new_stream,
            tells_reasoning=chat.tells_reasoning,
        )
        asked = {**chat.sampling, "request_id": request.state.request_id}
        if body.stream:
            items = texts.stream(client, chat.prompt, asked, answer, body.usage_wanted)
            return await begin_stream(request, places[model.id].during(items), chat.names)
        async with places[model.id].taking():
            return JSONResponse(answer.whole(await until_gone(request, client.generate_text(chat.prompt, **asked))))

    @described("Completions of prompts.", body=CompletionBody, streams=True)
    async def complete(request: Request) -> Response:
        body = await read_body(request, CompletionBody, lenient)
        request.state.names = names = completions.completion_names(body)
        model, client = find(body.model, "llm")
        sampling = {**completions.completion_sampling(body), "request_id": request.state.request_id}
        asked = await completions.asked_of(body, model, sampling)
        answer = completions.CompletionAnswer(_stamp("cmpl"), int(time.time()), model.id, body)
        if body.stream:
            items = answer.stream(client, asked, sampling)
            return await begin_stream(request, places[model.id].during(items, len(asked)), names)
        async with places[model.id].taking(len(asked)):
            made = all_of([client.generate_text(item.prompt, **sampling) for item in asked])
            return JSONResponse(answer.whole(asked, await until_gone(request, made)))

    @described("Pictures of a prompt.", body=ImageBody, streams=True)
    async def generate_images(request: Request) -> Response:
        body = await read_body(request, ImageBody, lenient)
        request.state.names = names = images.NAMES
        model, client = find(body.model, "image")
        images.check(body)
        if body.stream:
            items = images.stream(client, body, request.state.request_id)
            return await begin_stream(request, places[model.id].during(items), names)
        async with places[model.id].taking():
            return JSONResponse(await until_gone(request, images.whole(client, body, request.state.request_id)))

    @described("The tokens of a text or a chat.", body=tokenizing.TokenizeBody)
    async def tokenize(request: Request) -> Response:
        body = await read_body(request, tokenizing.TokenizeBody, lenient)
        request.state.names = tokenizing.tokenize_names(body)
        return JSONResponse(await tokenizing.tokenize(body, find(body.model or only("llm"), "llm")[0]))

    @described("The text of tokens.", body=tokenizing.DetokenizeBody)
    async def detokenize(request: Request) -> Response:
        body = await read_body(request, tokenizing.DetokenizeBody, lenient)
        return JSONResponse(await tokenizing.detokenize(body, find(body.model or only("llm"), "llm")[0]))

    @described("The version of this project.")
    async def version(request: Request) -> Response:
        return JSONResponse({"version": own_version()})

    def llm(name: str) -> tuple[Offered, AsyncClient, Places]:
        model, client = find(name, "llm")
        return model, client, places[model.id]

    rules = settings.rules
    responses = Responses(ResponseStore(rules.stored_responses, rules.stored_megabytes * 2**20), llm, lenient)

    @described("Whether the models are ready; 503 where they are not.")
    async def health(request: Request) -> Response:
        said = await readiness(settings.ready_url)
        return JSONResponse(said, 200 if said["ready"] else 503)

    @described("Prometheus metrics of the gateway and the server.", answers="text/plain")
    async def show_metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        page, content_type = await asyncio.to_thread(metrics.page, accept, settings.metrics_url)
        return Response(page, headers={"content-type": content_type})

    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/models", list_models),
            Route("/v1/models/{name}", show_model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/responses", responses.create, methods=["POST"]),
            Route("/v1/responses/{id}", responses.show, methods=["GET"]),
            Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
            Route("/v1/responses/{id}/input_items", responses.show_input),
            Route("/v1/images/generations", generate_images, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/version", version),
            Route("/health", health),
            Route("/metrics", show_metrics),
            *(batches.routes() if batches is not None else ()),
        ],
        middleware=[
            Middleware(Observed, metrics=metrics),  # the first is the outermost
            *_cors(settings.rules.cors_origins),
            Middleware(Drained, drain=drain or Drain()),
            Middleware(
                Guard,
                keys=keys,
                max_body_bytes=settings.max_body_bytes,
                max_file_bytes=None if batches is None else settings.max_file_bytes,
            ),
            *([Middleware(Watched, load=batches.load)] if batches is not None else ()),
        ],
        exception_handlers=handlers,
    )
    if batches is not None:
        batches.ask_with(ExceptionMiddleware(app.router, handlers))
    # One slash too many would be sent elsewhere: to what the caller's Host says, without TLS behind a proxy that ends it.
    app.router.redirect_slashes = False
    if rules.schema:
        app.router.routes.append(_schema_route(openapi_of(app.routes, bool(keys.callers))))
    return app


def _schema_route(document: dict[str, Any]) -> Route:
    async def show(request: Request) -> Response:
        return JSONResponse(document)

    return Route("/openapi.json", show, include_in_schema=False)


def _batches(settings: GatewaySettings, at_once: int) -> Batches | None:
    folder = settings.rules.batches
    return None if folder is None else Batches(BatchStore(Path(folder)), settings.rules.lenient, Pace(at_once=at_once))


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """For pages of other origins; before the guard, for a browser asks first, without a key. Cookies are not read."""
    if not origins:
        return []
    told = [REQUEST_ID_HEADER, IGNORED_HEADER, "retry-after", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=told,
        )
    ]


def _model(item: Offered) -> dict[str, Any]:
    length = {} if item.max_model_len is None else {"max_model_len": item.max_model_len}
    return {"id": item.id, "object": "model", "created": item.created, "owned_by": "nereid", **length}


def _stamp(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


async def _refuse(request: Request, error: Exception) -> Response:
    """Errors that were foreseen, in OpenAI's form."""
    if isinstance(error, NereidError):
        said = from_nereid(error, getattr(request.state, "names", {}))
        if said.status == 500:
            log.warning("request %s: %s", asked_by(request.scope["state"]), error)
    elif isinstance(error, HTTPException):
        said = ApiError(error.status_code, f"{request.method} {request.url.path}: {str(error.detail).lower()}")
    else:
        assert isinstance(error, ApiError)
        said = error
    return said.response()
