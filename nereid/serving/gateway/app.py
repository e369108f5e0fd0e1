"""The gateway's routes: OpenAI's bodies in, requests of the SDK out, answers back, streamed where asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nereid.engines.digests import own_version
from nereid.serving.gateway import layouts, pages, tokenizing
from nereid.serving.gateway.a1111.routes import WEBUI_PICTURE_PATHS, WebUiRoutes
from nereid.serving.gateway.batches.load import Watched
from nereid.serving.gateway.batches.routes import FILES_PATH
from nereid.serving.gateway.batches.service import Batches
from nereid.serving.gateway.bodies import read_body
from nereid.serving.gateway.catalogue import Catalogue
from nereid.serving.gateway.cors import cors
from nereid.serving.gateway.described import described
from nereid.serving.gateway.draining import Drain, Drained
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.guard import Bodies, Guard
from nereid.serving.gateway.image_routes import PICTURE_PATHS, Decoding, ImageRoutes, ServedImages
from nereid.serving.gateway.keys import Keys
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.limits import Limits
from nereid.serving.gateway.metrics import GatewayMetrics
from nereid.serving.gateway.observing import Observed
from nereid.serving.gateway.openapi import openapi_of
from nereid.serving.gateway.picture_store import PictureStore
from nereid.serving.gateway.readiness import readiness
from nereid.serving.gateway.refusals import refuse
from nereid.serving.gateway.response_store import ResponseStore
from nereid.serving.gateway.responses import Responses
from nereid.serving.gateway.schemas import LayoutBody, PageBody
from nereid.serving.gateway.text_routes import TextRoutes
from nereid.serving.gateway.waiting import begin_stream, until_gone
from nereid_client.errors import NereidError

log = logging.getLogger("nereid.gateway")

_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What the gateway stands before. `api_key` empty: everybody may ask."""

    repository: Path
    grpc_url: str
    metrics_url: str
    ready_url: str
    api_key: str = field(default="", repr=False)
    max_body_bytes: int = _LIMITS.body_bytes
    max_file_bytes: int = _LIMITS.file_bytes
    max_picture_bytes: int = _LIMITS.picture_bytes
    max_pictures_bytes: int = _LIMITS.pictures_bytes
    max_picture_pixels: int = _LIMITS.picture_pixels
    first: bool = True
    """Whether this is the first start of a serve."""
    rules: Rules = field(default_factory=Rules)


def create_app(settings: GatewaySettings, drain: Drain | None = None) -> Starlette:
    """The ASGI application; `drain` knows when it is to end."""
    catalogue = Catalogue(settings.repository, settings.rules, settings.grpc_url, settings.ready_url, settings.first)
    keys = Keys.of(settings.api_key, Path(settings.rules.keys) if settings.rules.keys else None)
    lenient = settings.rules.lenient
    metrics = GatewayMetrics()
    handlers: dict[Any, Any] = dict.fromkeys((ApiError, NereidError, HTTPException), refuse)
    batches = Batches.of(settings.rules, catalogue.at_once, catalogue.text_model, patient=not settings.first)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await catalogue.open()
        metrics.watch(catalogue.statistics)
        if batches is not None:
            metrics.watch_batches(batches.numbers)
        async with batches.running() if batches is not None else contextlib.nullcontext():
            yield
        await catalogue.close()

    @described("The models that are served.")
    async def list_models(request: Request) -> Response:
        return JSONResponse(catalogue.listed())

    @described("One model.")
    async def show_model(request: Request) -> Response:
        return JSONResponse(catalogue.shown(request.path_params["name"]))

    @described("Boxes for the elements of a page section.", body=LayoutBody, streams=True)
    async def lay_out(request: Request) -> Response:
        body = await read_body(request, LayoutBody, lenient)
        section = layouts.section_of(body.html, body.elements)
        model, client, places = catalogue.find(body.model, "layout")
        asked = (client, section, body.canvas, body.options, model.id, request.state.request_id)
        if body.stream:
            return await begin_stream(request, places.during(layouts.stream(*asked)), {}, ends_with_done=False)
        async with places.taking():
            return JSONResponse(await until_gone(request, layouts.whole(*asked)))

    @described("A web page from a brief.", body=PageBody, streams=True)
    async def make_page(request: Request) -> Response:
        body = await read_body(request, PageBody, lenient)
        model, client, places = catalogue.find(body.model, "page")
        asked = (client, body.brief, body.options, model.id, request.state.request_id)
        if body.stream:
            return await begin_stream(request, places.during(pages.stream(*asked)), {}, ends_with_done=False)
        async with places.taking():
            return JSONResponse(await until_gone(request, pages.whole(*asked)))

    @described("The tokens of a text or a chat.", body=tokenizing.TokenizeBody)
    async def tokenize(request: Request) -> Response:
        body = await read_body(request, tokenizing.TokenizeBody, lenient)
        request.state.names = tokenizing.tokenize_names(body)
        model, _, places = catalogue.find(body.model, "llm")
        async with places.taking_to_count():
            return JSONResponse(await tokenizing.tokenize(body, model))

    @described("The text of tokens.", body=tokenizing.DetokenizeBody)
    async def detokenize(request: Request) -> Response:
        body = await read_body(request, tokenizing.DetokenizeBody, lenient)
        model, _, places = catalogue.find(body.model, "llm")
        async with places.taking_to_count():
            return JSONResponse(await tokenizing.detokenize(body, model))

    @described("A model's special tokens and chat template.", query={"model": {"type": "string"}})
    async def tokenizer_info(request: Request) -> Response:
        return JSONResponse(tokenizing.tokenizer_info(catalogue.find(request.query_params.get("model"), "llm")[0]))

    @described("The version of this project.")
    async def version(request: Request) -> Response:
        return JSONResponse({"version": own_version()})

    text_routes = TextRoutes(catalogue.find, lenient)

    def image(name: str | None) -> ServedImages:
        model, client, places = catalogue.find(name, "image")
        return ServedImages(model.id, model.image, client, places)

    rules = settings.rules
    pictures = PictureStore(rules.url_seconds, rules.url_megabytes * 2**20, rules.url_total_megabytes * 2**20)
    metrics.watch_pictures(pictures)
    decoding = Decoding(settings.max_picture_pixels)
    image_routes = ImageRoutes(find=image, store=pictures, decoding=decoding, lenient=lenient, public_url=rules.public_url)
    responses = Responses(ResponseStore(rules.stored_responses, rules.stored_megabytes * 2**20), catalogue.find, lenient)

    webui = None
    if rules.a1111:
        webui = WebUiRoutes(find=image, models=partial(catalogue.ids, "image"), decoding=decoding, lenient=lenient)

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
            Route("/v1/models/{name:path}", show_model),
            *text_routes.routes(),
            Route("/v1/responses", responses.create, methods=["POST"]),
            Route("/v1/responses/input_tokens", responses.count, methods=["POST"]),
            Route("/v1/responses/{id}", responses.show, methods=["GET"]),
            Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
            Route("/v1/responses/{id}/input_items", responses.show_input),
            *image_routes.routes(),
            *(webui.routes() if webui is not None else ()),
            Route("/v1/layouts", lay_out, methods=["POST"]),
            Route("/v1/pages", make_page, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/tokenizer_info", tokenizer_info),
            Route("/version", version),
            Route("/health", health),
            Route("/metrics", show_metrics),
            *(batches.routes() if batches is not None else ()),
        ],
        middleware=[
            *cors(settings.rules.cors_origins),  # the first is the outermost: a browser's page is to read every answer
            Middleware(Observed, metrics=metrics),
            Middleware(Drained, drain=drain or Drain()),
            Middleware(Guard, keys=keys, bodies=_bodies(settings)),
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


def _bodies(settings: GatewaySettings) -> Bodies:
    return Bodies(
        usual=settings.max_body_bytes,
        file=settings.max_file_bytes,
        file_paths=frozenset() if settings.rules.batches is None else frozenset({FILES_PATH}),
        picture=settings.max_picture_bytes,
        picture_paths=frozenset({*PICTURE_PATHS, *(WEBUI_PICTURE_PATHS if settings.rules.a1111 else ())}),
        pictures_together=settings.max_pictures_bytes,
    )
