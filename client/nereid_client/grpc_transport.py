"""Tensors to a model and back over gRPC, sync and async."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcclient_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from nereid_client.errors import from_triton
from nereid_client.images import Tensors
from nereid_client.options import ConnectionOptions

Cancel = Callable[[], None]

_KEEPALIVE = grpcclient.KeepAliveOptions(keepalive_time_ms=30_000, keepalive_timeout_ms=10_000)


def _inputs(tensors: Tensors) -> list[Any]:
    made = []
    for name, value in tensors.items():
        tensor = grpcclient.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        made.append(tensor)
    return made


def _outputs(result: Any, names: Sequence[str]) -> Tensors:
    values: dict[str, np.ndarray | None] = {name: result.as_numpy(name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _reason(answers: queue.SimpleQueue[tuple[Any, InferenceServerException | None]]) -> InferenceServerException | None:
    """Why a stream was over before its request was written: its callback is told that, possibly a moment later."""
    try:
        return answers.get(timeout=1)[1]
    except queue.Empty:
        return None


def _arguments(options: ConnectionOptions) -> dict[str, Any]:
    tls = options.tls
    paths = (
        {}
        if tls is None
        else {
            "root_certificates": tls.root_certificates,
            "private_key": tls.private_key,
            "certificate_chain": tls.certificate_chain,
        }
    )
    return {
        "url": options.url,
        "ssl": tls is not None,
        "keepalive_options": _KEEPALIVE,
        **{name: str(path) for name, path in paths.items() if path is not None},
    }


class GrpcTransport:
    """One channel; calls may come from any thread."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._client = grpcclient.InferenceServerClient(**_arguments(options))

    def infer(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Tensors:
        """Call and wait; raises NereidError."""
        try:
            result = self._client.infer(model, _inputs(tensors), headers=dict(self._options.headers), client_timeout=timeout)
        except InferenceServerException as error:
            raise from_triton(error) from None
        return _outputs(result, outputs)

    def submit(
        self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None
    ) -> tuple[Future[Tensors], Cancel]:
        """Call without waiting; the second value cancels the call."""
        future: Future[Tensors] = Future()

        def finish(result: Any, error: InferenceServerException | None) -> None:
            if error is not None:
                future.set_exception(from_triton(error))
            else:
                future.set_result(_outputs(result, outputs))

        call = self._client.async_infer(
            model, _inputs(tensors), finish, headers=dict(self._options.headers), client_timeout=timeout
        )
        return future, call.cancel

    def stream(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Iterator[Tensors]:
        """Answers of a decoupled model as they come; leaving the loop cancels the rest."""
        answers: queue.SimpleQueue[tuple[Any, InferenceServerException | None]] = queue.SimpleQueue()
        client = grpcclient.InferenceServerClient(**_arguments(self._options))
        client.start_stream(
            lambda result, error: answers.put((result, error)),
            stream_timeout=timeout,
            headers=dict(self._options.headers),
        )
        finished = False
        try:
            try:
                client.async_stream_infer(model, _inputs(tensors), enable_empty_final_response=True)
            except InferenceServerException as refusal:
                finished = True
                raise from_triton(_reason(answers) or refusal) from None
            while True:
                result, error = answers.get()
                if error is not None:
                    finished = True
                    raise from_triton(error)
                response = result.get_response()
                if response.outputs:
                    yield _outputs(result, outputs)
                if response.parameters["triton_final_response"].bool_param:
                    finished = True
                    return
        finally:
            client.stop_stream(cancel_requests=not finished)
            client.close()

    def is_ready(self, model: str) -> bool:
        try:
            return bool(self._client.is_model_ready(model, headers=dict(self._options.headers), client_timeout=5))
        except InferenceServerException:
            return False

    def close(self) -> None:
        self._client.close()


class AsyncGrpcTransport:
    """The same on asyncio; cancelling the awaiting task cancels the call."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._client = grpcclient_aio.InferenceServerClient(**_arguments(options))

    async def infer(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Tensors:
        try:
            result = await self._client.infer(
                model, _inputs(tensors), headers=dict(self._options.headers), client_timeout=timeout
            )
        except InferenceServerException as error:
            raise from_triton(error) from None
        return _outputs(result, outputs)

    async def stream(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> AsyncIterator[Tensors]:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model, "inputs": _inputs(tensors)}  # its end tells the server to end the stream, too

        answers = self._client.stream_infer(requests(), stream_timeout=timeout, headers=dict(self._options.headers))
        try:
            async for result, error in answers:
                if error is not None:
                    raise from_triton(error)
                if result.get_response().outputs:
                    yield _outputs(result, outputs)
        except grpc.RpcError as error:
            raise from_triton(InferenceServerException(error.details() or "", str(error.code()))) from None
        finally:
            answers.cancel()

    async def is_live(self) -> bool:
        try:
            return bool(await self._client.is_server_live(headers=dict(self._options.headers), client_timeout=5))
        except InferenceServerException:
            return False

    async def close(self) -> None:
        await self._client.close()
