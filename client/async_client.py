"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any

from nereid.client.client import connection_options, patience
from nereid.client.errors import UnavailableError
from nereid.client.grpc_transport import AsyncGrpcTransport
from nereid.client.http_transport import AsyncHttpTransport
from nereid.client.images import IMAGE_OUTPUTS, STREAM_OUTPUTS, ImageProgress, ImageRequest, ImageResult, from_stream
from nereid.client.options import Protocol, Tls


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

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
