"""Waiting for work while its caller waits: one that hangs up is heard at once, and its work cancelled; knows no route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nereid.serving.gateway.errors import ApiError, caller_gone, from_nereid, internal_error
from nereid_client.errors import NereidError
from nereid_protocol.json_lines import json_line

log = logging.getLogger("nereid.gateway")

GONE = "caller_gone"
"""In a request's state: its caller hung up while its answer was streamed."""

T = TypeVar("T")
Event = tuple[str | None, dict[str, Any]]
"""A server-sent event: its name, where it has one, and its body."""


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; raises ApiError and cancels the work once the caller has hung up. The body must have been read."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_hung_up(request.receive))
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise caller_gone()
        return task.result()
    finally:
        await _end(task, leaving)


async def all_of(work: Sequence[Awaitable[T]]) -> list[T]:
    """All results; the first failure cancels the others."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(*tasks)


async def some_of(work: Sequence[Callable[[], Awaitable[T]]], at_once: int) -> list[T]:
    """The same of what is begun here, `at_once` together; what was not begun by the first failure never is."""
    free = asyncio.Semaphore(at_once)

    async def one(begin: Callable[[], Awaitable[T]]) -> T:
        async with free:
            return await begin()

    return await all_of([one(begin) for begin in work])


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what is not done, and let it tell the server so."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def begin_stream(
    request: Request, items: AsyncGenerator[Event, None], names: Mapping[str, str], *, ends_with_done: bool = True
) -> EventStream:
    """Server-sent events. The first is awaited here, so that a refused request is an HTTP error, not a broken stream."""
    try:
        first = await until_gone(request, anext(items))
    except BaseException:
        await items.aclose()
        raise
    return EventStream(first, items, names, request.state.request_id, ends_with_done)


class EventStream(Response):
    """Events until the last, `[DONE]` where the API has that, or until the caller hangs up; an error is the last but that."""

    media_type = "text/event-stream"

    def __init__(
        self, first: Event, items: AsyncGenerator[Event, None], names: Mapping[str, str], request_id: str, ends_with_done: bool
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # the second: nginx holds nothing back
        del self.headers["content-length"]
        self._first, self._items, self._names, self._request_id = first, items, names, request_id
        self._ends_with_done = ends_with_done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait([writing, leaving], return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
            else:
                scope["state"][GONE] = True
        finally:
            await _end(writing, leaving)
            await self._items.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._say(send, _line(*self._first))
        try:
            async for item in self._items:
                await self._say(send, _line(*item))
        except NereidError as error:
            await self._say(send, _line(None, from_nereid(error, self._names).body()))
        except ApiError as error:
            await self._say(send, _line(None, error.body()))
        except Exception:
            log.exception("request %s: its stream has failed", self._request_id)
            await self._say(send, _line(None, internal_error(self._request_id).body()))
        await self._say(send, "data: [DONE]\n\n" if self._ends_with_done else "", more=False)

    @staticmethod
    async def _say(send: Send, text: str, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": more})


def _line(name: str | None, data: dict[str, Any]) -> str:
    lead = f"event: {name}\n" if name else ""
    return f"{lead}data: {json_line(data)}\n\n"
