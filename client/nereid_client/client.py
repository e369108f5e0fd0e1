"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from typing import Protocol as TypingProtocol

from nereid_client.errors import ServerError, UnavailableError
from nereid_client.grpc_transport import Cancel, GrpcTransport
from nereid_client.http_transport import HttpTransport
from nereid_client.images import (
    IMAGE_OUTPUTS,
    STREAM_OUTPUTS,
    ImageProgress,
    ImageRequest,
    ImageResult,
    Tensors,
    from_stream,
)
from nereid_client.options import DEFAULT_PORTS, GRACE_SECONDS, ConnectionOptions, Protocol, Tls
from nereid_client.texts import TEXT_OUTPUTS, TextDelta, TextResult, text_tensors


class Transport(TypingProtocol):
    """What a client needs of a protocol; pass your own to `Client` to test without a server."""

    def infer(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Tensors: ...

    def submit(
        self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None
    ) -> tuple[Future[Tensors], Cancel]: ...

    def stream(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Iterator[Tensors]: ...

    def is_ready(self, model: str) -> bool: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PendingImage:
    """A request under way. The ensemble hears of `cancel` between its steps; streams and `denoise` within one tick."""

    _future: Future[Tensors]
    _cancel: Cancel

    def result(self, timeout: float | None = None) -> ImageResult:
        """Wait for the images; raises NereidError, or TimeoutError after `timeout` seconds of waiting here."""
        return ImageResult.from_tensors(self._future.result(timeout))

    def cancel(self) -> None:
        """Ask the server to stop; `result` then raises CancelledError."""
        self._cancel()

    @property
    def done(self) -> bool:
        return self._future.done()


class Client:
    """Requests to one server, each waited for. A context manager; safe to share between threads over gRPC.

    Args:
        url: host:port; 127.0.0.1 and the protocol's usual port where absent.
        protocol: `grpc` or `http`.
        name: prefix of the pipeline's models, as given to `nereid export --name`.
        tls, headers: for servers behind TLS or a proxy that wants a token.
        timeout: seconds a request may take, unless it says otherwise; None for the server's own limit.
        retries, backoff: further attempts when the server is unavailable, and the first pause in seconds.
        transport: instead of a connection.
    """

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
        transport: Transport | None = None,
    ) -> None:
        self._options = connection_options(url, protocol, tls, headers, retries, backoff)
        self._timeout = timeout
        self._prefix = f"{name}_" if name else ""
        make = GrpcTransport if self._options.protocol is Protocol.GRPC else HttpTransport
        self._transport: Transport = transport if transport is not None else make(self._options)

    def generate_image(self, prompt: str, *, timeout: float | None = None, **options: Any) -> ImageResult:
        """Draw `prompt` and wait; `options` are the fields of ImageRequest. Raises NereidError."""
        request = ImageRequest.of(prompt=prompt, **options)
        limit = timeout if timeout is not None else self._timeout
        tensors = request.tensors(timeout=limit, batched=True)
        made = self._retry(lambda: self._transport.infer(self._model("text_to_image"), tensors, IMAGE_OUTPUTS, patience(limit)))
        return ImageResult.from_tensors(made)

    def submit_image(self, prompt: str, *, timeout: float | None = None, **options: Any) -> PendingImage:
        """Draw `prompt` without waiting (gRPC only); not retried."""
        request = ImageRequest.of(prompt=prompt, **options)
        limit = timeout if timeout is not None else self._timeout
        tensors = request.tensors(timeout=limit, batched=True)
        return PendingImage(*self._transport.submit(self._model("text_to_image"), tensors, IMAGE_OUTPUTS, patience(limit)))

    def stream_image(self, prompt: str, *, timeout: float | None = None, **options: Any) -> Iterator[ImageProgress | ImageResult]:
        """Draw `prompt`, yielding progress with previews, then the result; leaving the loop cancels the request."""
        request = ImageRequest.of(prompt=prompt, **options)
        limit = timeout if timeout is not None else self._timeout
        tensors = request.tensors(timeout=limit, batched=False)
        model = self._model("text_to_image_stream")
        for outputs in self._transport.stream(model, tensors, STREAM_OUTPUTS, patience(limit)):
            yield from_stream(outputs)

    def generate_text(self, prompt: str | Sequence[int], *, timeout: float | None = None, **sampling: Any) -> TextResult:
        """Continue a text, or token ids, and wait; `sampling` has the names of vLLM's SamplingParams. Raises NereidError."""
        limit = timeout if timeout is not None else self._timeout
        tensors = text_tensors(prompt, sampling, stream=False, timeout=limit)
        return TextResult.from_tensors(self._retry(lambda: self._only_answer(tensors, limit)))

    def stream_text(self, prompt: str | Sequence[int], *, timeout: float | None = None, **sampling: Any) -> Iterator[TextDelta]:
        """Continue a text, yielding it as it is written; leaving the loop cancels the request."""
        limit = timeout if timeout is not None else self._timeout
        tensors = text_tensors(prompt, sampling, stream=True, timeout=limit)
        for outputs in self._transport.stream(self._model("llm"), tensors, TEXT_OUTPUTS, patience(limit)):
            yield TextDelta.from_tensors(outputs)

    def _only_answer(self, tensors: Tensors, limit: float | None) -> Tensors:
        answers = list(self._transport.stream(self._model("llm"), tensors, TEXT_OUTPUTS, patience(limit)))
        if len(answers) != 1:
            raise ServerError(f"the server gave {len(answers)} answers where one was asked for")
        return answers[0]

    def is_ready(self) -> bool:
        """Whether the image pipeline's models are loaded."""
        return all(self._transport.is_ready(self._model(name)) for name in ("text_to_image", "denoise", "unet"))

    def _model(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _retry(self, call: Any) -> Tensors:
        for pause in self._options.pauses():
            try:
                return call()
            except UnavailableError:
                time.sleep(pause)
        return call()

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def connection_options(
    url: str | None,
    protocol: Protocol | str,
    tls: Tls | None,
    headers: Mapping[str, str] | None,
    retries: int,
    backoff: float,
) -> ConnectionOptions:
    """Arguments of both clients, resolved."""
    chosen = Protocol(protocol)
    return ConnectionOptions(
        url=url if url is not None else f"127.0.0.1:{DEFAULT_PORTS[chosen]}",
        protocol=chosen,
        tls=tls,
        headers=dict(headers or {}),
        retries=retries,
        backoff=backoff,
    )


def patience(limit: float | None) -> float | None:
    return None if limit is None else limit + GRACE_SECONDS
