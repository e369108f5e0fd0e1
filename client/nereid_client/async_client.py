"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from nereid_client.client import connection_options, patience
from nereid_client.errors import ServerError, UnavailableError
from nereid_client.grpc_transport import AsyncGrpcTransport
from nereid_client.http_transport import AsyncHttpTransport
from nereid_client.images import IMAGE_OUTPUTS, STREAM_OUTPUTS, ImageProgress, ImageRequest, ImageResult, Tensors, from_stream
from nereid_client.options import Protocol, Tls
from nereid_client.texts import TEXT_OUTPUTS, TextDelta, TextResult, text_tensors


class AsyncClient:
    """Client on asyncio, with the same arguments; cancelling a task cancels its request. Make it inside a running loop."""

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
        transport: Any = None,
    ) -> None:
        self._options = connection_options(url, protocol, tls, headers, retries, backoff)
        self._timeout = timeout
        self._prefix = f"{name}_" if name else ""
        make = AsyncGrpcTransport if self._options.protocol is Protocol.GRPC else AsyncHttpTransport
        self._transport: Any = transport if transport is not None else make(self._options)

    async def generate_image(self, prompt: str, *, timeout: float | None = None, **options: Any) -> ImageResult:
        """Draw `prompt`; `options` are the fields of ImageRequest. Raises NereidError."""
        limit = timeout if timeout is not None else self._timeout
        tensors = ImageRequest.of(prompt=prompt, **options).tensors(timeout=limit, batched=True)
        model = f"{self._prefix}text_to_image"
        for pause in self._options.pauses():
            try:
                return ImageResult.from_tensors(await self._transport.infer(model, tensors, IMAGE_OUTPUTS, patience(limit)))
            except UnavailableError:
                await asyncio.sleep(pause)
        return ImageResult.from_tensors(await self._transport.infer(model, tensors, IMAGE_OUTPUTS, patience(limit)))

    async def stream_image(
        self, prompt: str, *, timeout: float | None = None, **options: Any
    ) -> AsyncIterator[ImageProgress | ImageResult]:
        """Draw `prompt`, yielding progress with previews, then the result (gRPC only)."""
        limit = timeout if timeout is not None else self._timeout
        tensors = ImageRequest.of(prompt=prompt, **options).tensors(timeout=limit, batched=False)
        model = f"{self._prefix}text_to_image_stream"
        async for outputs in self._transport.stream(model, tensors, STREAM_OUTPUTS, patience(limit)):
            yield from_stream(outputs)

    async def generate_text(self, prompt: str | Sequence[int], *, timeout: float | None = None, **sampling: Any) -> TextResult:
        """Continue a text, or token ids; `sampling` has the names of vLLM's SamplingParams. Raises NereidError."""
        limit = timeout if timeout is not None else self._timeout
        tensors = text_tensors(prompt, sampling, stream=False, timeout=limit)
        for pause in self._options.pauses():
            try:
                return await self._only_answer(tensors, limit)
            except UnavailableError:
                await asyncio.sleep(pause)
        return await self._only_answer(tensors, limit)

    async def stream_text(
        self, prompt: str | Sequence[int], *, timeout: float | None = None, **sampling: Any
    ) -> AsyncIterator[TextDelta]:
        """Continue a text, yielding it as it is written (gRPC only); closing the iterator cancels the request."""
        limit = timeout if timeout is not None else self._timeout
        tensors = text_tensors(prompt, sampling, stream=True, timeout=limit)
        answers = self._transport.stream(f"{self._prefix}llm", tensors, TEXT_OUTPUTS, patience(limit))
        try:
            async for outputs in answers:
                yield TextDelta.from_tensors(outputs)
        finally:
            await answers.aclose()

    async def _only_answer(self, tensors: Tensors, limit: float | None) -> TextResult:
        answers = [
            outputs async for outputs in self._transport.stream(f"{self._prefix}llm", tensors, TEXT_OUTPUTS, patience(limit))
        ]
        if len(answers) != 1:
            raise ServerError(f"the server gave {len(answers)} answers where one was asked for")
        return TextResult.from_tensors(answers[0])

    async def is_live(self) -> bool:
        """Whether the server answers (gRPC only)."""
        return bool(await self._transport.is_live())

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
