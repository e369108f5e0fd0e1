"""The asyncio client: drives requests, waiting in the task that made them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from nereid_client.embeddings import EmbeddingResult
from nereid_client.grpc_transport import AsyncGrpcTransport
from nereid_client.images import ImageProgress, ImageResult
from nereid_client.layouts import Canvas, LayoutProgress, LayoutResult, Section
from nereid_client.pages import PageProgress, PageResult
from nereid_client.replay import Run
from nereid_client.server import Work
from nereid_client.session import CLOSE_SECONDS, PROBE_SECONDS, Session
from nereid_client.steps import Item, Reader, Wait
from nereid_client.texts import TextDelta, TextResult
from nereid_client.transport import Ended, Event

T = TypeVar("T")


class Mailbox(asyncio.Queue[T]):
    """A queue that other threads may put into; what they put after the loop's end is nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self._home = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def post(self, item: T) -> None:
        if threading.get_ident() == self._thread:
            return self.put_nowait(item)
        with contextlib.suppress(RuntimeError):
            self._home.call_soon_threadsafe(self.put_nowait, item)

    async def take(self, seconds: float | None) -> T | None:
        """The next item; None once the seconds have passed without one."""
        with contextlib.suppress(asyncio.QueueEmpty):
            return self.get_nowait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.get()
        return None


class AsyncClient(Session):
    """Client on asyncio, with the same arguments; cancelling a task cancels its request, here and on the server."""

    _grpc = AsyncGrpcTransport

    async def generate_image(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> ImageResult:
        """Draw `prompt`; `options` are the fields of ImageRequest. Raises NereidError."""
        return await _only(self._drive(*self._image(prompt, options, timeout, run_id, request_id)))

    async def stream_image(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> AsyncGenerator[ImageProgress | ImageResult, None]:
        """Draw `prompt`, yielding progress with previews, then the result; closing the iterator cancels the request."""
        async with contextlib.aclosing(self._drive(*self._image_stream(prompt, options, timeout, run_id, request_id))) as answers:
            async for answer in answers:
                yield answer

    async def generate_text(
        self,
        prompt: str | Sequence[int],
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **sampling: Any,
    ) -> TextResult:
        """Continue a text, or token ids; `sampling` has the names of vLLM's SamplingParams. Raises NereidError."""
        return await _only(self._drive(*self._text(prompt, sampling, timeout, run_id, request_id)))

    async def stream_text(
        self,
        prompt: str | Sequence[int],
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **sampling: Any,
    ) -> AsyncGenerator[TextDelta, None]:
        """Continue a text, yielding it as it is written; closing the iterator cancels the request."""
        async with contextlib.aclosing(self._drive(*self._text_stream(prompt, sampling, timeout, run_id, request_id))) as deltas:
            async for delta in deltas:
                yield delta

    async def embed_text(
        self,
        prompt: str | Sequence[int],
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> EmbeddingResult:
        """The mean of the last hidden states of a text, or of token ids; `options`: priority, add_special_tokens, lora_name.

        The model must have been exported with --embeddings. Raises NereidError.
        """
        return await _only(self._drive(*self._embedding(prompt, options, timeout, run_id, request_id)))

    async def generate_layout(
        self,
        section: Section,
        canvas: Canvas,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> LayoutResult:
        """Lay out a section (its HTML, or a list of elements) on a canvas (its width, or a mapping). Raises NereidError."""
        return await _only(self._drive(*self._layout(section, canvas, options, timeout, run_id, request_id)))

    async def stream_layout(
        self,
        section: Section,
        canvas: Canvas,
        *,
        interval: int = 1,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> AsyncGenerator[LayoutProgress | LayoutResult, None]:
        """The same, yielding what is predicted after every `interval` steps; closing the iterator cancels the request."""
        driven = self._drive(*self._layout_stream(section, canvas, interval, options, timeout, run_id, request_id))
        async with contextlib.aclosing(driven) as answers:
            async for answer in answers:
                yield answer

    async def generate_page(
        self,
        brief: str,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> PageResult:
        """Make a web page from a brief; `options` are the fields of PageRequest. Raises NereidError."""
        return await _only(self._drive(*self._page(brief, options, timeout, run_id, request_id)))

    async def stream_page(
        self,
        brief: str,
        *,
        interval: int = 1,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> AsyncGenerator[PageProgress | PageResult, None]:
        """The same, yielding the page so far after every `interval` pieces of work; closing the iterator cancels the request."""
        driven = self._drive(*self._page_stream(brief, interval, options, timeout, run_id, request_id))
        async with contextlib.aclosing(driven) as answers:
            async for answer in answers:
                yield answer

    async def is_live(self) -> bool:
        """Whether the server answers."""
        events: Mailbox[Event] = Mailbox()
        self._server.transport.probe(None, PROBE_SECONDS, events.post)
        return isinstance(await events.get(), Ended)

    async def _drive(self, work: Work, reader: Reader[T]) -> AsyncGenerator[T, None]:
        """Give out a request's results, waiting between its steps; closing this cancels it."""
        mailbox: Mailbox[Item] = Mailbox()
        steps = Run(work=work, server=self._server, reader=reader, post=mailbox.post).steps()
        item: Item | None = None
        try:
            while True:
                try:
                    step = steps.send(item)
                except StopIteration:
                    return
                item = None
                if isinstance(step, Wait):
                    item = await mailbox.take(step.seconds)
                else:
                    yield step.value
        finally:
            steps.close()

    async def close(self) -> None:
        """Let cancellations arrive, and close the connection."""
        await asyncio.to_thread(self._server.finish, CLOSE_SECONDS)
        closing = self._server.transport.close()
        if closing is not None:
            await closing

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


async def _only(values: AsyncGenerator[T, None]) -> T:
    """The one value of a request that gives one."""
    async with contextlib.aclosing(values):
        (value,) = [value async for value in values]
    return value
