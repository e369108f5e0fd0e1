"""Servers of Triton's two protocols with models that are functions, for what only a real connection shows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

Tensors = dict[str, np.ndarray]


class RefusedError(Exception):
    """A model's error: a sentence and gRPC's status."""

    def __init__(self, sentence: str, status: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> None:
        super().__init__(sentence)
        self.status = status


class HangError(Exception):
    """The model never answers."""


class DieError(Exception):
    """The connection breaks."""


Model = Callable[[Tensors], Iterator[Tensors]]
HTTP_STATUS = {grpc.StatusCode.INVALID_ARGUMENT: 400, grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.INTERNAL: 500}


class Small:
    """What both servers note; `gone` is set when a caller of a hanging model has left, `cut` are calls of gRPC that their
    callers ended before their answers had ended, `ids` are those of requests."""

    def __init__(self, models: dict[str, Model]) -> None:
        self.models = models
        self.ids: list[str] = []
        self.gone = threading.Event()
        self.cut: list[str] = []
        self.stopping = threading.Event()


def _tensors(request: Any) -> Tensors:
    made = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            value = deserialize_bytes_tensor(raw)
        else:
            value = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype))
        made[tensor.name] = value.reshape(tuple(tensor.shape))
    return made


def _response(request: Any, outputs: Tensors) -> Any:
    response = service_pb2.ModelInferResponse(model_name=request.model_name)
    for name, value in outputs.items():
        response.outputs.add(name=name, datatype=np_to_triton_dtype(value.dtype), shape=value.shape)
        packed = serialize_byte_tensor(value).item() if value.dtype == np.object_ else value.tobytes()
        response.raw_output_contents.append(packed)
    return response


class _Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, small: Small, die: Callable[[], None]) -> None:
        self._small, self._die = small, die

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in self._small.models)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        for answer in self._answers(request, context):
            return answer
        raise AssertionError

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            try:
                for answer in self._answers(request, context):
                    yield service_pb2.ModelStreamInferResponse(infer_response=answer)
            except RefusedError as error:
                yield service_pb2.ModelStreamInferResponse(error_message=str(error))

    def _answers(self, request: Any, context: Any) -> Iterator[Any]:
        context.add_callback(self._small.gone.set)
        self._small.ids.append(request.id)
        try:
            for outputs in self._small.models[request.model_name](_tensors(request)):
                yield _response(request, outputs)
        except HangError:
            while context.is_active() and not self._small.stopping.wait(0.02):
                pass
            context.abort(grpc.StatusCode.INTERNAL, "nobody waits")
        except DieError:
            self._die()
            self._small.stopping.wait()
        except RefusedError as error:
            if request.model_name == "llm":
                raise
            context.abort(error.status, str(error))
        finally:
            if not context.is_active():
                self._small.cut.append(request.model_name)


@contextmanager
def grpc_server(models: dict[str, Model], port: int = 0) -> Iterator[tuple[int, Small]]:
    small, pool = Small(models), ThreadPoolExecutor(8)
    server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    service = _Grpc(small, lambda: server.stop(None))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound, small
    finally:
        small.stopping.set()
        server.stop(None).wait()
        pool.shutdown(wait=False)


def _handler(small: Small) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            name = self.path.removeprefix("/v2/models/").removesuffix("/ready")
            self._answer(200 if name in small.models or name == "/v2/health/live" else 400, b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name, verb = self.path.removeprefix("/v2/models/").split("/")
            try:
                if verb == "infer":
                    self._infer(body, name)
                else:
                    self._stream(body, name)
            except HangError:
                with suppress(OSError):
                    self.connection.settimeout(60)
                    self.connection.recv(1)
                small.gone.set()
                self.close_connection = True
            except DieError:
                self.close_connection = True

        def _answer(self, status: int, body: bytes, header: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if header is not None:
                self.send_header("Inference-Header-Content-Length", str(header))
            self.end_headers()
            self.wfile.write(body)

        def _infer(self, body: bytes, name: str) -> None:
            length = int(self.headers["Inference-Header-Content-Length"])
            tensors, rest = {}, body[length:]
            header = json.loads(body[:length])
            small.ids.append(header.get("id", ""))
            for tensor in header["inputs"]:
                size = tensor["parameters"]["binary_data_size"]
                raw, rest = rest[:size], rest[size:]
                if tensor["datatype"] == "BYTES":
                    value = deserialize_bytes_tensor(raw)
                else:
                    value = np.frombuffer(raw, triton_to_np_dtype(tensor["datatype"]))
                tensors[tensor["name"]] = value.reshape(tensor["shape"])
            try:
                outputs = next(small.models[name](tensors))
            except RefusedError as error:
                self._answer(HTTP_STATUS[error.status], json.dumps({"error": str(error)}).encode())
                return
            raws = [serialize_byte_tensor(v).item() if v.dtype == np.object_ else v.tobytes() for v in outputs.values()]
            described = [
                {
                    "name": name,
                    "datatype": np_to_triton_dtype(value.dtype),
                    "shape": list(value.shape),
                    "parameters": {"binary_data_size": len(raw)},
                }
                for (name, value), raw in zip(outputs.items(), raws, strict=True)
            ]
            header = json.dumps({"outputs": described}).encode()
            self._answer(200, header + b"".join(raws), len(header))

        def _stream(self, body: bytes, name: str) -> None:
            fields = json.loads(body)
            small.ids.append(fields.pop("id", ""))
            tensors = {name: _from_json(value) for name, value in fields.items()}
            begun = False
            try:
                for outputs in small.models[name](tensors):
                    if not begun:
                        self._begin(200)
                        begun = True
                    self._event({key: _to_json(value) for key, value in outputs.items()})
            except RefusedError as error:
                if not begun:
                    self._begin(HTTP_STATUS[error.status])
                    begun = True
                self._event({"error": str(error)})
            self.wfile.write(b"0\r\n\r\n")

        def _begin(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def _event(self, event: dict[str, Any]) -> None:
            data = f"data: {json.dumps(event)}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

    return Handler


def _from_json(value: Any) -> np.ndarray:
    values = value if isinstance(value, list) else [value]
    return np.array([item.encode() if isinstance(item, str) else item for item in values], object)


def _to_json(value: np.ndarray) -> Any:
    values = [item.decode() if isinstance(item, bytes) else item.item() for item in value.reshape(-1)]
    return values[0] if len(values) == 1 else values


@contextmanager
def http_server(models: dict[str, Model], port: int = 0) -> Iterator[tuple[int, Small]]:
    small = Small(models)
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(small))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], small
    finally:
        small.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


SERVERS = {"grpc": grpc_server, "http": http_server}
