"""The blocking client: drives requests, waiting in the thread that made them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from nereid_client.embeddings import EmbeddingResult
from nereid_client.grpc_transport import GrpcTransport
from nereid_client.images import ImageProgress, ImageResult
from nereid_client.layouts import Canvas, LayoutProgress, LayoutResult, Section
from nereid_client.pages import PageProgress, PageResult
from nereid_client.replay import Run
from nereid_client.server import Work
from nereid_client.session import CLOSE_SECONDS, PROBE_SECONDS, Session
from nereid_client.steps import CANCEL, Item, Reader, Wait
from nereid_client.texts import TextDelta, TextResult
from nereid_client.transport import Ended, Event

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PendingImage:
    """A request under way, on a thread of its own."""

    run_id: str
    _future: Future[ImageResult]
    _cancel: Callable[[], None]

    def result(self, timeout: float | None = None) -> ImageResult:
        """Wait for the images; raises NereidError, or TimeoutError after `timeout` seconds of waiting here."""
        return self._future.result(timeout)

    def cancel(self) -> None:
        """Stop it, here and on the server; `result` then raises CancelledError."""
        self._cancel()

    @property
    def done(self) -> bool:
        return self._future.done()


class Client(Session):
    """Requests to one server, each waited for. A context manager; safe to share between threads."""

    _grpc = GrpcTransport

    def _begin(self) -> None:
        self._pending: dict[int, PendingImage] = {}
        self._pending_lock = threading.Lock()

    def generate_image(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> ImageResult:
        """Draw `prompt` and wait; `options` are the fields of ImageRequest. Raises NereidError."""
        return _only(self._drive(*self._image(prompt, options, timeout, run_id, request_id)))

    def submit_image(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> PendingImage:
        """Draw `prompt` without waiting."""
        work, reader = self._image(prompt, options, timeout, run_id, request_id)
        items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        future: Future[ImageResult] = Future()
        pending = PendingImage(work.run_id, future, lambda: items.put(CANCEL))

        def draw() -> None:
            try:
                future.set_result(_only(self._drive(work, reader, items)))
            except BaseException as error:
                future.set_exception(error)

        with self._pending_lock:
            self._pending[id(pending)] = pending
        future.add_done_callback(lambda _: self._forget(id(pending)))
        threading.Thread(target=draw, name="nereid-image", daemon=True).start()
        return pending

    def _forget(self, pending: int) -> None:
        with self._pending_lock:
            del self._pending[pending]

    def stream_image(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> Generator[ImageProgress | ImageResult, None, None]:
        """Draw `prompt`, yielding progress with previews, then the result; leaving the loop cancels the request."""
        yield from self._drive(*self._image_stream(prompt, options, timeout, run_id, request_id))

    def generate_text(
        self,
        prompt: str | Sequence[int],
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **sampling: Any,
    ) -> TextResult:
        """Continue a text, or token ids, and wait; `sampling` has the names of vLLM's SamplingParams. Raises NereidError."""
        return _only(self._drive(*self._text(prompt, sampling, timeout, run_id, request_id)))

    def stream_text(
        self,
        prompt: str | Sequence[int],
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **sampling: Any,
    ) -> Generator[TextDelta, None, None]:
        """Continue a text, yielding it as it is written; leaving the loop cancels the request."""
        yield from self._drive(*self._text_stream(prompt, sampling, timeout, run_id, request_id))

    def embed_text(
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
        return _only(self._drive(*self._embedding(prompt, options, timeout, run_id, request_id)))

    def generate_layout(
        self,
        section: Section,
        canvas: Canvas,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> LayoutResult:
        """Lay out a section (its HTML, or a list of elements) on a canvas (its width, or a mapping) and wait.

        `options` are the fields of LayoutRequest. Raises NereidError.
        """
        return _only(self._drive(*self._layout(section, canvas, options, timeout, run_id, request_id)))

    def stream_layout(
        self,
        section: Section,
        canvas: Canvas,
        *,
        interval: int = 1,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> Generator[LayoutProgress | LayoutResult, None, None]:
        """The same, yielding what is predicted after every `interval` steps; leaving the loop cancels the request."""
        yield from self._drive(*self._layout_stream(section, canvas, interval, options, timeout, run_id, request_id))

    def generate_page(
        self,
        brief: str,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> PageResult:
        """Make a web page from a brief and wait; `options` are the fields of PageRequest. Raises NereidError."""
        return _only(self._drive(*self._page(brief, options, timeout, run_id, request_id)))

    def stream_page(
        self,
        brief: str,
        *,
        interval: int = 1,
        timeout: float | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> Generator[PageProgress | PageResult, None, None]:
        """The same, yielding the page so far after every `interval` pieces of work; leaving the loop cancels the request."""
        yield from self._drive(*self._page_stream(brief, interval, options, timeout, run_id, request_id))

    def is_ready(self) -> bool:
        """Whether the image pipeline's models are loaded."""
        return all(self._probe(self._model(name)) for name in ("text_to_image", "denoise", "unet"))

    def is_live(self) -> bool:
        """Whether the server answers."""
        return self._probe(None)

    def _probe(self, model: str | None) -> bool:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._server.transport.probe(model, PROBE_SECONDS, events.put)
        return isinstance(events.get(), Ended)

    def _drive(self, work: Work, reader: Reader[T], items: queue.SimpleQueue[Item] | None = None) -> Generator[T, None, None]:
        """Give out a request's results, waiting between its steps; closing this cancels it."""
        mailbox: queue.SimpleQueue[Item] = items if items is not None else queue.SimpleQueue()
        steps = Run(work=work, server=self._server, reader=reader, post=mailbox.put).steps()
        item: Item | None = None
        try:
            while True:
                try:
                    step = steps.send(item)
                except StopIteration:
                    return
                item = None
                if isinstance(step, Wait):
                    try:
                        item = mailbox.get(timeout=step.seconds)
                    except queue.Empty:
                        continue
                else:
                    yield step.value
        finally:
            steps.close()

    def close(self) -> None:
        """Cancel what is pending, let cancellations arrive, and close the connection."""
        with self._pending_lock:
            pending = list(self._pending.values())
        for image in pending:
            image.cancel()
        wait([image._future for image in pending], timeout=CLOSE_SECONDS)
        self._server.finish(CLOSE_SECONDS)
        self._server.transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _only(values: Iterator[T]) -> T:
    """The one value of a request that gives one."""
    (value,) = values
    return value
