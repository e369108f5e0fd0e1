"""An ONNX model behind a config.pbtxt: session options from the config, batches of requests to one run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from nereid.engines.arena import Arena
from nereid.engines.onnx_options import SHRINKAGE, session_options
from nereid.engines.onnx_plugins import NV_TENSORRT_RTX, add_tensorrt_rtx
from nereid.engines.served_model import Arguments, Port, Tensors, check_signature, run_as_one
from nereid.flow.errors import EngineError, InvalidRequestError, first_line

_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int8)": "TYPE_INT8",
    "tensor(bool)": "TYPE_BOOL",
}
_ACCELERATORS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A session and the names it takes and gives."""

    name: str
    session: ort.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batched: bool
    arena: Arena | None
    """None on a graphics card without `memory.enable_memory_arena_shrinkage`: what lies there is not this process's memory."""

    @classmethod
    def load(cls, arguments: Arguments) -> OnnxModel:
        """Build the session; raises ValueError naming what in the config and the graph do not fit."""
        config, shrinkage = arguments.config, arguments.parameters.get(SHRINKAGE, "")
        path = arguments.version_folder / (config.get("default_model_filename") or "model.onnx")
        options = session_options(config, arguments.parameters)
        session = ort.InferenceSession(str(path), options, _providers(arguments, options))
        check_signature(arguments.name, config, _ports(session.get_inputs()), _ports(session.get_outputs()), may_be_optional=True)
        return cls(
            name=arguments.name,
            session=session,
            inputs=tuple(item["name"] for item in config["input"]),
            outputs=tuple(item["name"] for item in config["output"]),
            batched=int(config.get("max_batch_size", 0)) > 0,
            arena=None if arguments.instance_kind == "GPU" and not shrinkage else Arena(devices=shrinkage),
        )

    def run(self, requests: Sequence[Tensors]) -> list[dict[str, np.ndarray] | Exception]:
        """One result or one error a request; requests of equal row shapes share a run."""
        results: list[dict[str, np.ndarray] | Exception] = [EngineError("not run")] * len(requests)
        groups: dict[object, list[int]] = defaultdict(list)
        for index, tensors in enumerate(requests):
            groups[self._shape_key(tensors, index)].append(index)
        for members in groups.values():
            try:
                for index, outputs in zip(members, self._run([requests[i] for i in members]), strict=True):
                    results[index] = outputs
            except Exception as error:
                for index in members:
                    results[index] = _as_request_error(self.name, error)
        return results

    def _shape_key(self, tensors: Tensors, index: int) -> object:
        if not self.batched:
            return index
        return tuple(tensors[name].shape[1:] for name in self.inputs if name in tensors)

    def _run(self, members: Sequence[Tensors]) -> list[dict[str, np.ndarray]]:
        if len(members) == 1:
            return [dict(zip(self.outputs, self._call(members[0]), strict=True))]
        return run_as_one(members, self.inputs, self.outputs, self._call)

    def _call(self, feeds: Tensors) -> list[np.ndarray]:
        if self.arena is None:
            return list(self.session.run(self.outputs, dict(feeds)))
        return self.arena.run(self.session, self.outputs, feeds)


def runner(file: str) -> Callable[[Tensors], object]:
    """Loads a file with default options and gives what runs it, for the process that measures memory."""
    session = ort.InferenceSession(file, session_options({}, {}), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    arena = Arena(devices="cpu:0")  # every run begins with what the engine itself holds
    return lambda feeds: arena.run(session, outputs, feeds)


def _as_request_error(name: str, error: Exception) -> Exception:
    """The session refuses bad shapes as InvalidArgument; anything else is the engine's own failure."""
    first = first_line(error)
    if type(error).__name__ in ("InvalidArgument", "ValueError"):
        return InvalidRequestError(f"{name}: {first}")
    return EngineError(f"{name}: {first}")


def _providers(arguments: Arguments, options: ort.SessionOptions) -> list[Any] | None:
    """Those to name beside the session's options; None where the options have a plugin's, which a list would displace."""
    accelerators = arguments.config.get("optimization", {}).get("execution_accelerators", {})
    wanted: list[Any] = []
    for item in accelerators.get("gpu_execution_accelerator", []):
        if item["name"] == NV_TENSORRT_RTX:
            add_tensorrt_rtx(options, arguments.device_id)
            return None
        if item["name"] not in _ACCELERATORS:
            raise ValueError(
                f"gpu_execution_accelerator: {item['name']!r} is not allowed; it must be one of "
                f"{', '.join((*_ACCELERATORS, NV_TENSORRT_RTX))}"
            )
        wanted.append((_ACCELERATORS[item["name"]], {"device_id": arguments.device_id}))
    for item in accelerators.get("cpu_execution_accelerator", []):
        raise ValueError(f"cpu_execution_accelerator: {item['name']!r} is not allowed; this backend has none")
    if arguments.instance_kind == "GPU":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise ValueError("instance_group: KIND_GPU needs the package onnxruntime-gpu and a CUDA device")
        if not any(provider == "CUDAExecutionProvider" for provider, _ in wanted):
            wanted.append(("CUDAExecutionProvider", {"device_id": arguments.device_id}))
    return [*wanted, "CPUExecutionProvider"]


def _ports(nodes: Sequence[Any]) -> list[Port]:
    return [Port(node.name, node.type, _TYPES.get(node.type, ""), len(node.shape) or None) for node in nodes]
