"""Calls over HTTP, a connection and a thread for each. The server does not see a lost caller: a run is cancelled by its name."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.http as httpclient
from tritonclient.utils import np_to_triton_dtype

from nereid_client.addresses import is_own_time, why
from nereid_client.errors import (
    CancelledError,
    ConnectionLostError,
    DeadlineExceededError,
    NereidError,
    NotReadyError,
    UnsupportedError,
    typed,
)
from nereid_client.options import ConnectionOptions, Tls
from nereid_client.transport import Answered, Call, Cancel, Ended, Failed, Tell, Tensors

CONNECT_SECONDS = 10.0
_STREAM_DTYPES: dict[str, type] = {
    "preview": np.uint8,
    "generated_image": np.uint8,
    "image_seed": np.int64,
    "timings": np.float32,
    "cumulative_logprob": np.float32,
}
_NOT_TENSORS = ("model_name", "model_version", "id")
_HEADER_LENGTH = "Inference-Header-Content-Length"


class HttpTransport:
    """Calls may come from any thread."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._host, _, path = options.url.partition("/")
        self._base = f"/{path.strip('/')}" if path.strip("/") else ""
        self._exchanges: set[Exchange] = set()
        self._closed = False

    def start(self, call: Call, tell: Tell) -> Cancel:
        """See Transport."""
        if call.decoupled and "init_image" in call.tensors:
            raise UnsupportedError("init_image: HTTP streams carry no pictures to the server; use the gRPC protocol")
        answer = self._generate if call.decoupled else self._infer
        return self._on_thread(call.timeout, lambda exchange: answer(exchange, call, tell), tell)

    def probe(self, model: str | None, timeout: float, tell: Tell) -> None:
        """See Transport."""
        path = "/v2/health/live" if model is None else f"/v2/models/{model}/ready"

        def ask(exchange: Exchange) -> None:
            response = exchange.ask("GET", self._base + path, b"", dict(self._options.headers))
            response.read()
            if response.status != 200:
                raise NotReadyError(f"{model or 'the server'} is not ready")

        self._on_thread(timeout, ask, tell)

    def close(self) -> None:
        """End all calls."""
        self._closed = True
        for exchange in tuple(self._exchanges):
            exchange.give_up()

    def _on_thread(self, timeout: float | None, work: Any, tell: Tell) -> Cancel:
        if self._closed:
            raise CancelledError("the client is closed")
        exchange = Exchange(self._connection(), timeout)
        self._exchanges.add(exchange)

        def run() -> None:
            try:
                work(exchange)
            except NereidError as error:
                tell(Failed(error))
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, TimeoutError) and is_own_time(error):
                    return tell(Failed(_out_of_time(exchange)))
                what = "the connection to {} broke ({})" if exchange.sent else "no server answers at {} ({})"
                tell(Failed(ConnectionLostError(what.format(self._options.url, why(error)), sent=exchange.sent)))
            except Exception as error:  # an answer that cannot be read: its caller must not wait for ever
                tell(Failed(typed(f"the answer could not be read ({error})")))
            else:
                tell(Ended())
            finally:
                exchange.close()
                self._exchanges.discard(exchange)

        threading.Thread(target=run, name="nereid-http", daemon=True).start()
        return exchange.give_up

    def _connection(self) -> http.client.HTTPConnection:
        if self._options.tls is None:
            return http.client.HTTPConnection(self._host, timeout=CONNECT_SECONDS)
        return http.client.HTTPSConnection(self._host, timeout=CONNECT_SECONDS, context=_ssl_context(self._options.tls))

    def _infer(self, exchange: Exchange, call: Call, tell: Tell) -> None:
        """One answer, its tensors as bytes behind a JSON header."""
        body, length = httpclient.InferenceServerClient.generate_request_body(_inputs(call.tensors), request_id=call.request_id)
        headers = {"Content-Type": "application/octet-stream", **self._options.headers}
        if length is not None:
            headers[_HEADER_LENGTH] = str(length)
        response = exchange.ask("POST", f"{self._base}/v2/models/{call.model}/infer", body, headers)
        content = response.read()
        if response.status != 200:
            raise _refusal(response, content)
        header = response.getheader(_HEADER_LENGTH)
        result = httpclient.InferenceServerClient.parse_response_body(content, header_length=int(header) if header else None)
        names = [output["name"] for output in result.get_response()["outputs"]]
        tell(Answered({name: result.as_numpy(name) for name in names}))

    def _generate(self, exchange: Exchange, call: Call, tell: Tell) -> None:
        """Answers of a decoupled model from its generate_stream endpoint, as server-sent events."""
        fields = {name: _json_value(value) for name, value in call.tensors.items()}
        body = json.dumps({"id": call.request_id, **fields} if call.request_id else fields).encode()
        headers = {"Content-Type": "application/json", **self._options.headers}
        response = exchange.ask("POST", f"{self._base}/v2/models/{call.model}/generate_stream", body, headers)
        if response.status != 200:
            raise _refusal(response, response.read())
        for line in _lines(response):
            if line.startswith(b"data:"):
                tell(Answered(_event(json.loads(line.removeprefix(b"data:")))))


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its answer on a connection, which another thread may end at any time."""

    connection: http.client.HTTPConnection
    timeout: float | None
    sent: bool = False
    _socket: socket.socket | None = None
    _given_up: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        self.connection.connect()
        with self._lock:
            if self._given_up:
                raise ConnectionAbortedError("given up")
            self._socket = self.connection.sock
            self._socket.settimeout(self.timeout)
        self.sent = True
        self.connection.request(method, path, body, headers)
        return self.connection.getresponse()

    def give_up(self) -> None:
        with self._lock:
            self._given_up = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads

    def close(self) -> None:
        with self._lock:
            self._socket = None
            self.connection.close()


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Lines as they come; unlike the response's own, they do not take a cut connection for the end."""
    rest = b""
    while piece := response.read1(1 << 16):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    yield rest


def _out_of_time(exchange: Exchange) -> NereidError:
    if exchange.sent:
        return DeadlineExceededError(f"timeout: no answer within {exchange.timeout or 0:g} s", bare=True)
    return ConnectionLostError(f"nobody answers at {exchange.connection.host} within {CONNECT_SECONDS:g} s")


def _refusal(response: http.client.HTTPResponse, content: bytes) -> NereidError:
    try:  # a stream's refusal comes as its only event
        error = json.loads(content.strip().removeprefix(b"data:"))["error"]
        message = str(error["message"] if isinstance(error, dict) else error)  # the latter is Triton's form, the former OpenAI's
    except (ValueError, KeyError, TypeError):
        message = f"HTTP status {response.status} {response.reason}"
    return typed(message, str(response.status))


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.root_certificates)
    if tls.certificate_chain is not None:
        context.load_cert_chain(tls.certificate_chain, tls.private_key)
    return context


def _inputs(tensors: Tensors) -> list[Any]:
    made = []
    for name, value in tensors.items():
        tensor = httpclient.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value, binary_data=True)
        made.append(tensor)
    return made


def _json_value(value: np.ndarray) -> Any:
    values = [item.decode() if isinstance(item, bytes) else item.item() for item in value.reshape(-1)]
    return values[0] if len(values) == 1 else values


def _event(event: dict[str, Any]) -> Tensors:
    """One server-sent event as tensors; arrays come flat, pictures get their shape back."""
    if "error" in event:
        raise typed(str(event["error"]))
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
