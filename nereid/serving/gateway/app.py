"""The gateway's routes: OpenAI's bodies in, requests of the SDK out, answers back, streamed where asked."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nereid.serving.gateway import images, texts
from nereid.serving.gateway.errors import ApiError, from_nereid, from_validation
from nereid.serving.gateway.repository import Offered, offered_models
from nereid.serving.gateway.schemas import ChatBody, CompletionBody, ImageBody
from nereid_client import AsyncClient
from nereid_client.errors import NereidError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What the gateway stands before. `api_key` empty: everybody may ask."""

    repository: Path
    grpc_url: str
    metrics_url: str
    api_key: str = field(default="", repr=False)
    max_body_bytes: int = 4 * 2**20


def create_app(settings: GatewaySettings) -> FastAPI:
    """The ASGI application."""
    models = offered_models(settings.repository)
    clients: dict[str, AsyncClient] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for prefix in {model.prefix for model in models.values()}:
            clients[prefix] = AsyncClient(settings.grpc_url, name=prefix)
        yield
        for client in clients.values():
            await client.close()

    app = FastAPI(title="Nereid", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, api_key=settings.api_key, max_body_bytes=settings.max_body_bytes)
    app.add_exception_handler(ApiError, lambda request, error: _error(error))
    app.add_exception_handler(NereidError, lambda request, error: _error(from_nereid(error)))
    app.add_exception_handler(RequestValidationError, lambda request, error: _error(from_validation(error.errors()[0])))
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]

    def find(name: str, kind: str) -> tuple[Offered, AsyncClient]:
        model = models.get(name)
        if model is None or model.kind != kind:
            known = ", ".join(item.id for item in models.values() if item.kind == kind) or "none"
            raise ApiError(
                404, f"model: {name!r} is not one of those served here: {known}", param="model", code="model_not_found"
            )
        return model, clients[model.prefix]

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(item) for item in models.values()]}

    @app.get("/v1/models/{name}")
    async def show_model(name: str) -> dict[str, Any]:
        if name not in models:
            raise ApiError(404, f"model: {name!r} is not served here", param="model", code="model_not_found")
        return _model(models[name])

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        model, client = find(body.model, "llm")
        prompt = model.prompt([{"role": message.role, "content": message.text} for message in body.messages])
        answer = texts.ChatAnswer(_stamp("chatcmpl"), int(time.time()), model.id)
        sampling = texts.chat_sampling(body)
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return await _events(texts.stream(client, prompt, sampling, answer, body.n, usage))
        return JSONResponse(answer.whole(await _until_gone(request, client.generate_text(prompt, **sampling))))

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        model, client = find(body.model, "llm")
        prompts = texts.prompts_of(body)
        answer = texts.CompletionAnswer(_stamp("cmpl"), int(time.time()), model.id, body.echo)
        sampling = texts.completion_sampling(body)
        if body.stream:
            if len(prompts) > 1:
                raise ApiError(400, f"prompt: {len(prompts)} prompts cannot be streamed; send one", param="prompt")
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return await _events(texts.stream(client, prompts[0], sampling, answer, body.n, usage))
        made = [client.generate_text(prompt, **sampling) for prompt in prompts]
        return JSONResponse(answer.whole_of(prompts, await _until_gone(request, _gather(made))))

    @app.post("/v1/images/generations")
    async def generate_images(body: ImageBody, request: Request) -> Response:
        _, client = find(body.model, "image")
        if body.stream:
            if body.n != 1:
                raise ApiError(400, f"n: {body.n} images cannot be streamed; it must be 1", param="n")
            return await _events(images.stream(client, body))
        return JSONResponse(await _until_gone(request, images.whole(client, body)))

    @app.get("/health")
    async def health() -> Response:
        ready = [await client.is_live() for client in clients.values()]
        return JSONResponse({"ready": all(ready)}, 200 if all(ready) else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(_fetch, settings.metrics_url), media_type="text/plain; version=0.0.4")

    return app


def _model(item: Offered) -> dict[str, Any]:
    return {"id": item.id, "object": "model", "created": item.created, "owned_by": "nereid"}


def _stamp(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _error(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return _error(ApiError(error.status_code, f"{request.method} {request.url.path}: {str(error.detail).lower()}"))


def _fetch(url: str) -> bytes:
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=10) as page:
            return bytes(page.read())
    except OSError as error:
        raise ApiError(503, f"Triton's metrics do not answer ({error})", "service_unavailable_error") from None


async def _gather(made: Sequence[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*made))


async def _until_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for the answer; a caller that hangs up first has its request cancelled."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=0.25))[0]:
            if await request.is_disconnected():
                raise ApiError(499, "the caller went away", "cancelled_error")
        return task.result()
    finally:
        task.cancel()


async def _events(items: AsyncIterator[tuple[str | None, dict[str, Any]]]) -> Response:
    """Server-sent events. The first item is awaited here, so that a refused request is an HTTP error, not a broken stream."""
    try:
        first = await anext(items)
    except NereidError as error:
        raise from_nereid(error) from None

    async def lines() -> AsyncIterator[str]:
        try:
            yield _event(*first)
            async for item in items:
                yield _event(*item)
        except NereidError as error:
            yield _event(None, from_nereid(error).body())
        finally:
            await items.aclose()  # type: ignore[attr-defined]
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _event(name: str | None, data: dict[str, Any]) -> str:
    lead = f"event: {name}\n" if name else ""
    return f"{lead}data: {json.dumps(data, ensure_ascii=False)}\n\n"


class Guard:
    """Before any route: the API key, and the size of the body, announced or not."""

    def __init__(self, app: ASGIApp, api_key: str, max_body_bytes: int) -> None:
        self._app, self._key, self._most = app, api_key, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._key and scope["path"].startswith("/v1/") and not self._allowed(headers.get(b"authorization", b"")):
            refusal = ApiError(401, "the API key is missing or wrong", "authentication_error", code="invalid_api_key")
            await _error(refusal)(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            await self._refuse_size(scope, receive, send)
            return
        seen, too_large, answered = 0, False, False

        async def counted() -> Message:
            nonlocal seen, too_large
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                too_large = True
                return {"type": "http.request", "body": b"", "more_body": False}
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            if too_large and not answered:
                return  # whatever the route made of half a body
            answered = True
            await send(message)

        await self._app(scope, counted, watched)
        if too_large and not answered:
            await self._refuse_size(scope, receive, send)

    def _allowed(self, header: bytes) -> bool:
        return hmac.compare_digest(header, f"Bearer {self._key}".encode())

    async def _refuse_size(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _error(ApiError(413, f"the body is larger than {self._most} bytes"))(scope, receive, send)
