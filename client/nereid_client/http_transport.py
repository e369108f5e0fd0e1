"""Tensors to a model and back over HTTP, sync and async. There is no cancelling: the server does not see a lost client."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import tritonclient.http as httpclient
import tritonclient.http.aio as httpclient_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from nereid_client.errors import ConnectionLostError, DeadlineExceededError, UnsupportedError, from_triton
from nereid_client.grpc_transport import Cancel
from nereid_client.images import Tensors
from nereid_client.options import ConnectionOptions, Tls

_STREAM_DTYPES: dict[str, type] = {
    "preview": np.uint8,
    "generated_image": np.uint8,
    "image_seed": np.int64,
    "timings": np.float32,
    "cumulative_logprob": np.float32,
}
_NOT_TENSORS = ("model_name", "model_version", "id")


def _inputs(tensors: Tensors) -> list[Any]:
    made = []
    for name, value in tensors.items():
        tensor = httpclient.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value, binary_data=True)
        made.append(tensor)
    return made


def _requested(outputs: Sequence[str]) -> list[Any]:
    return [httpclient.InferRequestedOutput(name, binary_data=True) for name in outputs]


def _values(result: Any, outputs: Sequence[str]) -> Tensors:
    return {name: result.as_numpy(name) for name in outputs}


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.root_certificates)
    if tls.certificate_chain is not None:
        context.load_cert_chain(tls.certificate_chain, tls.private_key)
    return context


class HttpTransport:
    """A small pool of connections; use it from one thread."""

    def __init__(self, options: ConnectionOptions, timeout: float = 600.0) -> None:
        self._options = options
        arguments: dict[str, Any] = {"network_timeout": timeout, "connection_timeout": 10.0}
        if options.tls is not None:
            tls = options.tls
            arguments |= {"ssl": True, "ssl_context_factory": lambda: _ssl_context(tls)}
        self._client = httpclient.InferenceServerClient(options.url, **arguments)

    def infer(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Tensors:
        """Call and wait; raises NereidError."""
        try:
            result = self._client.infer(model, _inputs(tensors), outputs=_requested(outputs), headers=dict(self._options.headers))
        except InferenceServerException as error:
            raise from_triton(error) from None
        except TimeoutError as error:
            raise DeadlineExceededError(f"no answer within the time given ({error})") from None
        except OSError as error:
            raise ConnectionLostError(f"no server answers at {self._options.url} ({error})") from None
        return _values(result, outputs)

    def submit(
        self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None
    ) -> tuple[Future[Tensors], Cancel]:
        raise UnsupportedError("HTTP cannot cancel a request that is under way; use the gRPC protocol")

    def stream(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Iterator[Tensors]:
        """Answers of a decoupled model from its generate_stream endpoint, as server-sent events."""
        if "init_image" in tensors:
            raise UnsupportedError("init_image: HTTP streams carry no pictures to the server; use the gRPC protocol")
        body = json.dumps({name: _json_value(value) for name, value in tensors.items()})
        tls = self._options.tls
        connection: http.client.HTTPConnection
        if tls is not None:
            connection = http.client.HTTPSConnection(self._options.url, timeout=timeout, context=_ssl_context(tls))
        else:
            connection = http.client.HTTPConnection(self._options.url, timeout=timeout)
        headers = {"Content-Type": "application/json", **self._options.headers}
        try:
            connection.request("POST", f"/v2/models/{model}/generate_stream", body, headers)
            response = connection.getresponse()
            if response.status != 200:
                message = json.loads(response.read() or b"{}").get("error", response.reason)
                raise from_triton(InferenceServerException(message, str(response.status)))
            for line in response:
                if line.startswith(b"data:"):
                    yield _event(json.loads(line.removeprefix(b"data:")))
        except TimeoutError:
            raise DeadlineExceededError(f"no answer within {timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLostError(f"the connection to {self._options.url} broke ({error})") from None
        finally:
            connection.close()

    def is_ready(self, model: str) -> bool:
        try:
            return bool(self._client.is_model_ready(model, headers=dict(self._options.headers)))
        except (InferenceServerException, OSError):
            return False

    def close(self) -> None:
        self._client.close()


def _json_value(value: np.ndarray) -> Any:
    values = [item.decode() if isinstance(item, bytes) else item.item() for item in value.reshape(-1)]
    return values[0] if len(values) == 1 else values


def _event(event: dict[str, Any]) -> Tensors:
    """One server-sent event as tensors; arrays come flat, pictures get their shape back."""
    if "error" in event:
        raise from_triton(InferenceServerException(event["error"]))
    made: Tensors = {}
    for name, value in event.items():
        values = value if isinstance(value, list) else [value]
        if name in _NOT_TENSORS or value is None:
            continue
        if values and isinstance(values[0], str):
            made[name] = np.array([item.encode() for item in values], dtype=np.object_)
        else:
            made[name] = np.array(values, dtype=_STREAM_DTYPES.get(name, np.int32))
    for name in ("preview", "generated_image"):
        if name in made:
            made[name] = made[name].reshape(made["picture_shape"])
    return made


class AsyncHttpTransport:
    """The same on asyncio, without streams."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        arguments: dict[str, Any] = {}
        if options.tls is not None:
            arguments = {"ssl": True, "ssl_context": _ssl_context(options.tls)}
        self._client = httpclient_aio.InferenceServerClient(options.url, conn_timeout=600.0, **arguments)

    async def infer(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Tensors:
        try:
            result = await self._client.infer(
                model, _inputs(tensors), outputs=_requested(outputs), headers=dict(self._options.headers)
            )
        except InferenceServerException as error:
            raise from_triton(error) from None
        except TimeoutError:
            raise DeadlineExceededError("no answer within the time given") from None
        except OSError as error:
            raise ConnectionLostError(f"no server answers at {self._options.url} ({error})") from None
        return _values(result, outputs)

    async def stream(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> AsyncIterator[Tensors]:
        raise UnsupportedError("AsyncClient streams over gRPC only; use Client for a stream over HTTP")
        yield {}

    async def close(self) -> None:
        await self._client.close()
