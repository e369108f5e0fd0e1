"""Calls over gRPC, one channel for all of them; knows Triton's messages and nothing of what is asked."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from nereid_client.errors import CancelledError, ConnectionLostError, NereidError, NotReadyError, typed
from nereid_client.options import ConnectionOptions, Tls
from nereid_client.transport import Answered, Call, Cancel, Ended, Event, Failed, Tell, Tensors
from nereid_protocol.errors import WireError

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # pictures are larger than gRPC's 4 MB
    ("grpc.max_receive_message_length", -1),
    # Triton's server takes pings within 300 s of the last data for abuse, and ends the connection with all its calls.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A server that is started again is found soon: gRPC's own pauses between attempts grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


LEFT_SECONDS = 30.0
"""How long a call that nobody waits for is left to end by itself."""
CLOSE_SECONDS = 1.0
"""How long closing waits for those calls."""


@dataclass(slots=True)
class LeftCalls:
    """Calls that nobody waits for any more, and that end by themselves: their runs have been cancelled by id.

    They are not cancelled in gRPC's way: Triton before 24.12 may crash where a call is cancelled while its answer is sent
    (triton-inference-server/server, pull request 7840), and a run that has been cancelled by its id answers just then.
    """

    _since: dict[Any, float] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def leave(self, call: Any) -> None:
        """`call` has `cancel` and `add_done_callback`, as gRPC's futures and asyncio's tasks have."""
        now = time.monotonic()
        with self._changed:
            old = [other for other, since in self._since.items() if now - since > LEFT_SECONDS]
            self._since[call] = now
        call.add_done_callback(self._forget)
        for other in old:  # of a process that has died: it will not answer
            other.cancel()

    def _forget(self, call: Any) -> None:
        with self._changed:
            self._since.pop(call, None)
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Until all have ended."""
        with self._changed:
            self._changed.wait_for(lambda: not self._since, seconds)


class GrpcTransport:
    """One channel; calls may come from any thread."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._url = options.url
        self._channel = _channel(grpc, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = _metadata(options)
        self._left = LeftCalls()
        self._closed = False

    def start(self, call: Call, tell: Tell) -> Cancel:
        """See Transport; a decoupled model's answers are read on a thread of their own."""
        request = _request(call)
        _check_open(self._closed)
        if call.decoupled:
            # The end of the requests' iterator tells the server to end the stream after the last answer.
            answers = self._stub.ModelStreamInfer(iter((request,)), timeout=call.timeout, metadata=self._metadata)
            threading.Thread(target=_read, args=(answers, tell, self._left, self._url), name="nereid-stream", daemon=True).start()
            return self._cancel_of(call, answers)
        future = self._stub.ModelInfer.future(request, timeout=call.timeout, metadata=self._metadata)
        future.add_done_callback(lambda done: _finish(done, tell, self._url))
        return self._cancel_of(call, future)

    def _cancel_of(self, call: Call, made: Any) -> Cancel:
        return functools.partial(self._left.leave, made) if call.ends_by_id else made.cancel

    def probe(self, model: str | None, timeout: float, tell: Tell) -> None:
        """See Transport."""
        _check_open(self._closed)
        method, request = _probe(self._stub, model)
        future = method.future(request, timeout=timeout, metadata=self._metadata)

        def finish(done: Any) -> None:
            error = _error(done, self._url)
            tell(_readiness(model, done.result()) if error is None else Failed(error))

        future.add_done_callback(finish)

    def close(self) -> None:
        self._closed = True
        self._left.wait(CLOSE_SECONDS)
        self._channel.close()


class AsyncGrpcTransport:
    """The same for an event loop, where a thread for every stream would cost more than the answers; used from the loop alone."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self._metadata = _metadata(options)
        self._channel: Any = None
        self._stub: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = LeftCalls()
        self._closed = False

    def start(self, call: Call, tell: Tell) -> Cancel:
        """See Transport."""
        request = _request(call)
        _check_open(self._closed)
        task = self._begin(self._answers(request, call, tell), tell)
        return functools.partial(self._left.leave, task) if call.ends_by_id else task.cancel

    def probe(self, model: str | None, timeout: float, tell: Tell) -> None:
        """See Transport."""
        _check_open(self._closed)
        self._begin(self._ask(model, timeout, tell), tell)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._left.wait, CLOSE_SECONDS)
        if self._channel is not None:
            await self._channel.close()

    def _begin(self, work: Coroutine[Any, Any, None], tell: Tell) -> asyncio.Task[None]:
        if self._channel is None:  # only now is there a loop for certain
            self._channel = _channel(grpc.aio, self._options)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

        async def run() -> None:
            try:
                await work
            except grpc.RpcError as error:
                tell(Failed(_typed(error, self._options.url)))
            except Exception as error:  # an answer that cannot be read: its caller must not wait for ever
                tell(Failed(typed(f"an answer could not be read ({error})")))

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answers(self, request: Any, call: Call, tell: Tell) -> None:
        if not call.decoupled:
            answer = await self._stub.ModelInfer(request, timeout=call.timeout, metadata=self._metadata)
            tell(Answered(_outputs(answer)))
            return tell(Ended())
        answers = self._stub.ModelStreamInfer(iter((request,)), timeout=call.timeout, metadata=self._metadata)
        async for answer in answers:
            if answer.error_message:
                tell(Failed(typed(answer.error_message)))
                with contextlib.suppress(grpc.RpcError):
                    async for _ in answers:  # its end comes by itself
                        pass
                return
            if answer.infer_response.outputs:
                tell(Answered(_outputs(answer.infer_response)))
        tell(Ended())

    async def _ask(self, model: str | None, timeout: float, tell: Tell) -> None:
        method, request = _probe(self._stub, model)
        tell(_readiness(model, await method(request, timeout=timeout, metadata=self._metadata)))


def _check_open(closed: bool) -> None:
    if closed:
        raise CancelledError("the client is closed")


def _read(answers: Any, tell: Tell, left: LeftCalls, url: str) -> None:
    """Tell a stream's answers until its end, which comes by itself after an error."""
    failed = False
    try:
        for answer in answers:
            if failed:
                continue
            if answer.error_message:
                failed = True
                tell(Failed(typed(answer.error_message)))
                left.leave(answers)
                continue
            if answer.infer_response.outputs:
                tell(Answered(_outputs(answer.infer_response)))
        if not failed:
            tell(Ended())
    except grpc.RpcError as error:
        if not failed:
            tell(Failed(_typed(error, url)))
    except Exception as error:  # an answer that cannot be read: its caller must not wait for ever
        answers.cancel()
        tell(Failed(typed(f"an answer could not be read ({error})")))


def _finish(done: Any, tell: Tell, url: str) -> None:
    """Tell the one answer of a call."""
    error = _error(done, url)
    if error is not None:
        return tell(Failed(error))
    try:
        outputs = _outputs(done.result())
    except Exception as unreadable:
        return tell(Failed(typed(f"the answer could not be read ({unreadable})")))
    tell(Answered(outputs))
    tell(Ended())


def _probe(stub: Any, model: str | None) -> tuple[Any, Any]:
    """The method and the request that ask whether a model is loaded, or, None, the server up."""
    if model is None:
        return stub.ServerLive, service_pb2.ServerLiveRequest()
    return stub.ModelReady, service_pb2.ModelReadyRequest(name=model)


def _readiness(model: str | None, answer: Any) -> Event:
    ready = answer.live if model is None else answer.ready
    return Ended() if ready else Failed(NotReadyError(f"{model or 'the server'} is not ready"))


def _error(done: Any, url: str) -> NereidError | None:
    if done.cancelled():
        return CancelledError("the request was cancelled from here")
    error = done.exception()
    return None if error is None else _typed(error, url)


def _typed(error: Any, url: str) -> NereidError:
    own = WireError.parse(error.details() or "")
    if error.code() is grpc.StatusCode.CANCELLED and own is None:  # not from here: those calls have nobody who reads this
        return ConnectionLostError("the server ended the call before its answer", sent=True)
    made = typed(error.details() or str(error.code()), str(error.code()))
    if isinstance(made, ConnectionLostError) and not made.sent:
        # gRPC says it at length, and names what the address was resolved to; the system's number stands behind it.
        why = re.sub(r" \(\d+\)$", "", str(made).rstrip("]").rpartition(": ")[2])
        return ConnectionLostError(f"no server answers at {url} ({why})")
    return made


def _request(call: Call) -> Any:
    request = service_pb2.ModelInferRequest(model_name=call.model, id=call.request_id)
    for name, value in call.tensors.items():
        datatype = np_to_triton_dtype(value.dtype)
        request.inputs.add(name=name, datatype=datatype, shape=value.shape)
        request.raw_input_contents.append(_raw(value))
    return request


def _raw(value: np.ndarray) -> bytes:
    if value.dtype == np.object_:
        packed = serialize_byte_tensor(value)
        return bytes(packed.item()) if packed.size else b""
    return np.ascontiguousarray(value).tobytes()


def _outputs(response: Any) -> Tensors:
    result = InferResult(response)
    values: Sequence[tuple[str, np.ndarray | None]] = [(output.name, result.as_numpy(output.name)) for output in response.outputs]
    return {name: value for name, value in values if value is not None}


def _metadata(options: ConnectionOptions) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in options.headers.items())


def _channel(kind: Any, options: ConnectionOptions) -> Any:
    """`kind` is grpc or grpc.aio."""
    if options.tls is None:
        return kind.insecure_channel(options.url, options=_CHANNEL_OPTIONS)
    return kind.secure_channel(options.url, _credentials(options.tls), options=_CHANNEL_OPTIONS)


def _credentials(tls: Tls) -> Any:
    files = (tls.root_certificates, tls.private_key, tls.certificate_chain)
    return grpc.ssl_channel_credentials(*(None if file is None else file.read_bytes() for file in files))
