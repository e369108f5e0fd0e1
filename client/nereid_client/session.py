"""What both clients are: how they are made, and how their requests are prepared, so that every attempt sends the same."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from nereid_client.addresses import AddressError, triton_address
from nereid_client.embeddings import EmbeddingResult, embedding_tensors
from nereid_client.errors import InvalidRequestError, ServerError
from nereid_client.http_transport import HttpTransport
from nereid_client.images import ImageProgress, ImageRequest, ImageResult, Tensors, from_stream
from nereid_client.layouts import Canvas, LayoutProgress, LayoutResult, Section, from_layout_tensors, layout_tensors
from nereid_client.options import DEFAULT_PORTS, ConnectionOptions, Protocol, Tls
from nereid_client.pages import PageProgress, PageResult, from_page_tensors, page_tensors
from nereid_client.reading import OnlyAnswer, StepStream, TextStream
from nereid_client.server import ReplayPolicy, Server, Statistics, Work
from nereid_client.steps import Reader
from nereid_client.texts import TextDelta, TextResult, text_tensors
from nereid_client.transport import Transport
from nereid_protocol.request_ids import REQUEST_ID_FORM, is_request_id, new_request_id

CLOSE_SECONDS = 2.0
"""What `close` waits for cancellations that are still on their way."""
PROBE_SECONDS = 5.0
A = TypeVar("A", LayoutResult, PageResult)
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class _Terms:
    """What is said of a request beside what it asks for. Its run is known by a secret, and logs know it by another name."""

    timeout: float | None
    run_id: str
    request_id: str

    @classmethod
    def of(cls, timeout: float | None, run_id: str | None, request_id: str | None) -> _Terms:
        """Names that were not given are made; raises InvalidRequestError for others than are allowed."""
        if run_id is not None and (not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id)):
            raise InvalidRequestError(
                f"run_id: {run_id!r} is not allowed; it must be 1 to 64 characters of A-Z a-z 0-9 _ -", "run_id"
            )
        if request_id is not None and not is_request_id(request_id):
            raise InvalidRequestError(f"request_id: {request_id!r} is not allowed; it must be {REQUEST_ID_FORM}", "request_id")
        return cls(timeout, run_id or secrets.token_urlsafe(18), request_id or new_request_id())


def _answer(kind: type[A], read: Callable[[Tensors], object], run_id: str, outputs: Tensors) -> A:
    """The answer where no steps were asked for."""
    made = read(outputs)
    if not isinstance(made, kind):
        raise ServerError("the server gave progress where an answer was asked for")
    return replace(made, run_id=run_id)


def _address(url: str | None, protocol: Protocol, tls: Tls | None) -> str:
    """Of a host alone, its usual port; behind TLS that is the library's."""
    if url is None:
        return f"127.0.0.1:{DEFAULT_PORTS[protocol]}"
    try:
        known = triton_address(url, DEFAULT_PORTS[protocol], path=protocol is Protocol.HTTP)
    except AddressError as error:
        raise InvalidRequestError(f"url: {error}", "url") from None
    return known if tls is None else url


class Session:
    """Base of Client and AsyncClient.

    Args:
        url: host:port; 127.0.0.1 and the protocol's usual port (gRPC 8001, HTTP 8000) where absent.
        protocol: `grpc` or `http`.
        name: prefix of the pipeline's models, as given to `nereid export --name`.
        tls, headers: for servers behind TLS or a proxy that wants a token.
        timeout: seconds a request may take with all its attempts, unless it says otherwise; None for the server's own limit.
        retries, backoff: further attempts when the server refuses a request, and the first pause in seconds.
        retry_full: whether a full queue is such a refusal, too; without it, it is told at once.
        replays: further attempts when the server, or one of its processes, died with the request inside. That is noticed by
            asking for the run once a second; behind a balancer of several servers use gRPC, whose one connection stays with
            the server that has the run.
        heal_seconds: how long it is waited for until it is back.
        transport: instead of a connection.
    """

    _grpc: Callable[[ConnectionOptions], Transport]

    def __init__(
        self,
        url: str | None = None,
        *,
        protocol: Protocol | str = Protocol.GRPC,
        name: str = "",
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        retries: int = 3,
        backoff: float = 0.2,
        retry_full: bool = True,
        replays: int = 3,
        heal_seconds: float = 60.0,
        transport: Transport | None = None,
    ) -> None:
        chosen = Protocol(protocol)
        options = ConnectionOptions(
            url=_address(url, chosen, tls),
            protocol=chosen,
            tls=tls,
            headers=dict(headers or {}),
        )
        if transport is None:
            transport = self._grpc(options) if chosen is Protocol.GRPC else HttpTransport(options)
        policy = ReplayPolicy(retries=retries, retry_full=retry_full, backoff=backoff, replays=replays, heal_seconds=heal_seconds)
        self._server = Server(transport=transport, policy=policy)
        self._timeout = timeout
        self._begin()
        self._prefix = f"{name}_" if name else ""

    def _begin(self) -> None:
        """What a subclass keeps beside."""

    @property
    def statistics(self) -> Statistics:
        """Requests, retries, replays and losses of this client so far."""
        return self._server.statistics

    def _image(
        self,
        prompt: str,
        options: Mapping[str, Any],
        timeout: float | None,
        run_id: str | None,
        request_id: str | None = None,
    ) -> tuple[Work, Reader[ImageResult]]:
        work = self._image_work(prompt, options, _Terms.of(timeout, run_id, request_id), stream=False)
        return work, OnlyAnswer(lambda outputs: replace(ImageResult.from_tensors(outputs), run_id=work.run_id))

    def _image_stream(
        self,
        prompt: str,
        options: Mapping[str, Any],
        timeout: float | None,
        run_id: str | None,
        request_id: str | None = None,
    ) -> tuple[Work, Reader[ImageProgress | ImageResult]]:
        work = self._image_work(prompt, options, _Terms.of(timeout, run_id, request_id), stream=True)
        return work, StepStream(work.run_id, from_stream, "image")

    def _text(
        self,
        prompt: str | Sequence[int],
        sampling: Mapping[str, Any],
        timeout: float | None,
        run_id: str | None,
        request_id: str | None = None,
    ) -> tuple[Work, Reader[TextResult]]:
        work = self._text_work(prompt, sampling, _Terms.of(timeout, run_id, request_id), stream=False)
        return work, OnlyAnswer(lambda outputs: replace(TextResult.from_tensors(outputs), run_id=work.run_id))

    def _text_stream(
        self,
        prompt: str | Sequence[int],
        sampling: Mapping[str, Any],
        timeout: float | None,
        run_id: str | None,
        request_id: str | None = None,
    ) -> tuple[Work, Reader[TextDelta]]:
        work = self._text_work(prompt, sampling, _Terms.of(timeout, run_id, request_id), stream=True)
        count = sampling.get("n")
        return work, TextStream(work.run_id, count if isinstance(count, int) else 1)

    def _embedding(
        self,
        prompt: str | Sequence[int],
        options: Mapping[str, Any],
        timeout: float | None,
        run_id: str | None,
        request_id: str | None = None,
    ) -> tuple[Work, Reader[EmbeddingResult]]:
        work = self._whole_work("llm", embedding_tensors(prompt, options), _Terms.of(timeout, run_id, request_id))
        return work, OnlyAnswer(lambda outputs: replace(EmbeddingResult.from_tensors(outputs), run_id=work.run_id))

    def _layout(
        self,
        section: Section,
        canvas: Canvas,
        options: Mapping[str, Any],
        timeout: float | None,
        run_id: str | None,
        request_id: str | None = None,
    ) -> tuple[Work, Reader[LayoutResult]]:
        work = self._layout_work(section, canvas, options, _Terms.of(timeout, run_id, request_id), None)
        return work, OnlyAnswer(partial(_answer, LayoutResult, from_layout_tensors, work.run_id))

    def _layout_stream(
        self,
        section: Section,
        canvas: Canvas,
        interval: int,
        options: Mapping[str, Any],
        timeout: float | None,
        run_id: str | None,
        request_id: str | None = None,
    ) -> tuple[Work, Reader[LayoutProgress | LayoutResult]]:
        work = self._layout_work(section, canvas, options, _Terms.of(timeout, run_id, request_id), interval)
        return work, StepStream(work.run_id, from_layout_tensors, "layout")

    def _layout_work(
        self, section: Section, canvas: Canvas, options: Mapping[str, Any], terms: _Terms, interval: int | None
    ) -> Work:
        return self._whole_work("layout", layout_tensors(section, canvas, _seeded(options), interval=interval), terms)

    def _page(
        self,
        brief: str,
        options: Mapping[str, Any],
        timeout: float | None,
        run_id: str | None,
        request_id: str | None = None,
    ) -> tuple[Work, Reader[PageResult]]:
        work = self._page_work(brief, options, _Terms.of(timeout, run_id, request_id), None)
        return work, OnlyAnswer(partial(_answer, PageResult, from_page_tensors, work.run_id))

    def _page_stream(
        self,
        brief: str,
        interval: int,
        options: Mapping[str, Any],
        timeout: float | None,
        run_id: str | None,
        request_id: str | None = None,
    ) -> tuple[Work, Reader[PageProgress | PageResult]]:
        work = self._page_work(brief, options, _Terms.of(timeout, run_id, request_id), interval)
        return work, StepStream(work.run_id, from_page_tensors, "page")

    def _page_work(self, brief: str, options: Mapping[str, Any], terms: _Terms, interval: int | None) -> Work:
        return self._whole_work("page", page_tensors(brief, _seeded(options), interval=interval), terms)

    def _whole_work(self, model: str, tensors: Tensors, terms: _Terms) -> Work:
        """Of a decoupled model that does all of it itself, and takes one request at a time."""
        return Work(
            model=self._model(model),
            holder=self._model(model),
            run_id=terms.run_id,
            request_id=terms.request_id,
            tensors=tensors,
            decoupled=True,
            batched=False,
            holder_decoupled=True,
            timeout=self._limit(terms.timeout),
        )

    def _image_work(self, prompt: str, options: Mapping[str, Any], terms: _Terms, *, stream: bool) -> Work:
        request = ImageRequest.of(prompt=prompt, **_seeded(options))
        return Work(
            model=self._model("text_to_image_stream" if stream else "text_to_image"),
            holder=self._model("denoise"),
            run_id=terms.run_id,
            request_id=terms.request_id,
            tensors=request.tensors(timeout=None, batched=not stream),
            decoupled=stream,
            batched=not stream,
            holder_decoupled=False,
            timeout=self._limit(terms.timeout),
        )

    def _text_work(self, prompt: str | Sequence[int], sampling: Mapping[str, Any], terms: _Terms, *, stream: bool) -> Work:
        return Work(
            model=self._model("llm"),
            holder=self._model("llm"),
            run_id=terms.run_id,
            request_id=terms.request_id,
            tensors=text_tensors(prompt, _seeded(sampling), stream=stream),
            decoupled=True,
            batched=False,
            holder_decoupled=True,
            timeout=self._limit(terms.timeout),
        )

    def _limit(self, timeout: float | None) -> float | None:
        limit = timeout if timeout is not None else self._timeout
        if limit is not None and not limit > 0:
            raise InvalidRequestError(f"timeout: {limit:g} is not allowed; it must be more than 0 seconds", "timeout")
        return limit

    def _model(self, name: str) -> str:
        return f"{self._prefix}{name}"


def _seeded(options: Mapping[str, Any]) -> dict[str, Any]:
    """A seed drawn here is the same at every attempt; one drawn by the server would not be."""
    seed = options.get("seed")
    return {**options, "seed": secrets.randbits(53) if seed is None else seed}
