"""Calls of sibling models from inside a Python backend stub: numpy in and out, errors as the types they were raised as."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

from nereid.flow import request_ids
from nereid.flow.errors import CancelledError, EngineError, InvalidRequestError, LostError, RequestError
from nereid.flow.parameters import TensorNames
from nereid.flow.request_ids import NamedThreads
from nereid.triton.device_arrays import on_device, on_host, require_device_arrays
from nereid.triton.messages import shortened, tells_death
from nereid_protocol.errors import WireError


def call_model(
    name: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    tensor_names: TensorNames | None = None,
    on_gpu: Collection[str] = (),
    decoupled: bool = False,
) -> dict[str, np.ndarray]:
    """Call a sibling model and wait: the wanted outputs that it gave; raises its RequestError.

    Of a decoupled model, it is its last answer that has any.

    Outputs of the names `on_gpu` stay where a GPU left them, as cupy arrays, and may be inputs of the next call.
    """
    theirs = (tensor_names or {}).get(name, {})
    stays = any(key in on_gpu for key in outputs)
    memory = pb_utils.TRITONSERVER_MEMORY_GPU if stays else pb_utils.TRITONSERVER_MEMORY_CPU
    request = pb_utils.InferenceRequest(
        model_name=name,
        request_id=request_ids.current(),
        requested_output_names=[theirs.get(key, key) for key in outputs],
        inputs=[_tensor(theirs.get(key, key), value) for key, value in inputs.items()],
        preferred_memory=pb_utils.PreferredMemory(memory, 0),
    )
    answer = _last_answer(request, name) if decoupled else request.exec()
    if answer.has_error():
        raise _sibling_error(name, answer.error())
    tensors = {key: pb_utils.get_output_tensor_by_name(answer, theirs.get(key, key)) for key in outputs}
    return {
        key: on_device(tensor) if key in on_gpu and not tensor.is_cpu() else on_host(tensor)
        for key, tensor in tensors.items()
        if tensor is not None
    }


def _last_answer(request: Any, name: str) -> Any:
    """Of those that a decoupled model gives one after the other: the first error, or the last one with tensors."""
    last = None
    for answer in request.exec(decoupled=True):
        if answer.has_error():
            return answer
        last = answer if answer.output_tensors() else last
    if last is None:
        raise LostError(f"{name}: it has ended without an answer")
    return last


def _tensor(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return pb_utils.Tensor(name, np.ascontiguousarray(value))
    return pb_utils.Tensor.from_dlpack(name, value)


@dataclass(frozen=True, slots=True)
class Callers:
    """Calls of sibling models on threads of their own: a future for each, and a clock beside it where a caller wants one."""

    pool: ThreadPoolExecutor
    tensor_names: TensorNames | None
    on_gpu: Collection[str]

    @classmethod
    def of(cls, count: int, tensor_names: TensorNames | None = None, on_gpu: Collection[str] = ()) -> Callers:
        if on_gpu:
            require_device_arrays()
        return cls(NamedThreads(count, thread_name_prefix="call"), tensor_names, on_gpu)

    def submit(self, name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Future[dict[str, np.ndarray]]:
        return self.pool.submit(call_model, name, inputs, outputs, self.tensor_names, self.on_gpu)

    def call(
        self, name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Call and wait; raises LostError after `timeout`: the late answer of a process that died never comes."""
        future = self.submit(name, inputs, outputs)
        try:
            return future.result(timeout)
        except FutureTimeout:
            future.cancel()
            raise LostError(f"{name}: no answer within {timeout:g} s") from None


def _sibling_error(name: str, problem: Any) -> RequestError:
    """The error of a called model, as its own type: what was refused stays refused, what died can be tried again."""
    message = problem.message()
    error = WireError.parse(message)
    if error is not None:
        return RequestError.of_wire(error)
    code = problem.code()
    said = f"{name}: {shortened(message)}"
    if code == pb_utils.TritonError.UNAVAILABLE or tells_death(message):
        return LostError(said)
    if code == pb_utils.TritonError.INVALID_ARG:
        return InvalidRequestError(said)
    if code == pb_utils.TritonError.CANCELLED:
        return CancelledError(said)
    return EngineError(said)
