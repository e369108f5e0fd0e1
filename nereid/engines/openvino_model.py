"""An OpenVINO IR behind a config.pbtxt: compiled with the config's parameters, one inference a request or a batch of them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from nereid.engines.compile_cache import CompileCache
from nereid.engines.digests import version_digest
from nereid.engines.openvino_graph import compile_graph, last_line
from nereid.engines.openvino_options import SHAPES_PARAMETER, pads, properties, shapes_memory
from nereid.engines.openvino_shapes import ShapedGraph, kept_bytes, shapes_kept
from nereid.engines.served_model import Arguments, Port, Tensors, check_signature, run_as_one
from nereid.flow.errors import EngineError, InvalidRequestError

log = logging.getLogger(__name__)

_TYPES = {
    "f32": "TYPE_FP32",
    "f16": "TYPE_FP16",
    "i64": "TYPE_INT64",
    "i32": "TYPE_INT32",
    "u8": "TYPE_UINT8",
    "i8": "TYPE_INT8",
    "boolean": "TYPE_BOOL",
}


def computes_bf16() -> bool:
    """Whether this processor has bfloat16; where it does not, OpenVINO computes in float32 without a word."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Graph(Protocol):
    """What runs an IR."""

    @property
    def inputs(self) -> Sequence[Any]: ...
    @property
    def outputs(self) -> Sequence[Any]: ...
    def infer(self, inputs: Tensors, outputs: Sequence[str]) -> list[NDArray]:
        """One call; the results are copies. Raises ValueError or RuntimeError where the inputs do not fit the graph."""
        ...


class OpenGraph:
    """A graph compiled once, whatever shapes it leaves open."""

    def __init__(self, compiled: Any) -> None:
        self.inputs: Sequence[Any] = compiled.inputs
        self.outputs: Sequence[Any] = compiled.outputs
        self._request = compiled.create_infer_request()

    def infer(self, inputs: Tensors, outputs: Sequence[str]) -> list[NDArray]:
        self._request.infer({name: np.ascontiguousarray(value) for name, value in inputs.items()})
        # Copies, for the request's own memory is written again by the next run.
        return [np.array(self._request.get_tensor(name).data) for name in outputs]


def load_graph(path: Path, parameters: Mapping[str, str], batch: int = 0) -> Graph:
    """An IR ready to run, compiled for its shapes where the parameters say so and it is small enough.

    `batch` fixes its first dimension. Raises ValueError where the file does not fit this OpenVINO.
    """
    wanted, memory = properties(parameters), shapes_memory(parameters)
    if wanted["INFERENCE_PRECISION_HINT"] == "bf16" and not computes_bf16():
        log.warning(
            "%s was exported for bfloat16, which this processor lacks; it is computed in float32", path.parent.parent.name
        )
    if not batch and path.is_file() and shapes_kept(weights_bytes(path), memory):
        return ShapedGraph(path, wanted, memory)
    return OpenGraph(_compile(path, wanted, batch))


def weights_bytes(path: Path) -> int:
    """The size of what lies beside an IR's description."""
    weights = path.with_suffix(".bin")
    return weights.stat().st_size if weights.is_file() else 0


def _compile(path: Path, wanted: Mapping[str, Any], batch: int) -> Any:
    core = ov.Core()

    def fix_batch(model: Any) -> Any:
        if batch:
            model.reshape({port: ov.PartialShape([batch, *list(port.get_partial_shape())[1:]]) for port in model.inputs})
        return model

    cache, digest = CompileCache.of_environment(), version_digest(path.parent)
    if cache is None or digest is None:
        return compile_graph(core, path, wanted, fix_batch)
    processor = [str(core.get_property("CPU", name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    key = ("openvino", ov.__version__, digest, path.name, *processor, str(sorted(wanted.items())), str(batch))
    with contextlib.suppress(ValueError), cache.entry(*key) as kept:  # the disk may be full
        if kept is not None:
            return compile_graph(core, path, {**wanted, "CACHE_DIR": str(kept)}, fix_batch)
    return compile_graph(core, path, wanted, fix_batch)


@dataclass(slots=True)
class OpenVinoModel:
    """A compiled model and the names it takes and gives; used by one thread at a time.

    `batch` is the fixed number of rows of a config with `max_batch_size`, as in Triton's backend: fewer are refused, or padded.
    0 leaves every dimension to the request.
    """

    name: str
    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int
    padding: bool

    @classmethod
    def load(cls, arguments: Arguments) -> OpenVinoModel:
        """Compile; raises ValueError naming what in the config and the graph do not fit."""
        config = arguments.config
        if arguments.instance_kind == "GPU":
            raise ValueError("instance_group: KIND_GPU is not allowed; it must be KIND_CPU")
        batch = int(config.get("max_batch_size", 0))
        path = arguments.version_folder / (config.get("default_model_filename") or "model.xml")
        graph = load_graph(path, arguments.parameters, batch)
        inputs, outputs = _ports(graph.inputs, config["input"]), _ports(graph.outputs, config["output"])
        check_signature(arguments.name, config, inputs, outputs, may_be_optional=False)
        return cls(
            name=arguments.name,
            graph=graph,
            inputs=tuple(item["name"] for item in config["input"]),
            outputs=tuple(item["name"] for item in config["output"]),
            batch=batch,
            padding=pads(arguments.parameters),
        )

    def run(self, requests: Sequence[Tensors]) -> list[dict[str, NDArray] | Exception]:
        """One result or one error a request."""
        if self.batch:
            return self._run_batch(requests)
        return [self._run_one(tensors) for tensors in requests]

    def _run_one(self, tensors: Tensors) -> dict[str, NDArray] | Exception:
        try:
            return dict(zip(self.outputs, self.graph.infer(tensors, self.outputs), strict=True))
        except (RuntimeError, ValueError, TypeError) as error:
            return self._error(error)

    def _run_batch(self, requests: Sequence[Tensors]) -> list[dict[str, NDArray] | Exception]:
        rows = sum(len(tensors[self.inputs[0]]) for tensors in requests)
        missing = self.batch - rows
        if missing and not (self.padding and missing > 0):
            refusal = InvalidRequestError(
                f"{self.name}: {rows} rows are not allowed; it must be {self.batch}, the model's batch "
                "(parameter ENABLE_BATCH_PADDING pads fewer)"
            )
            return [refusal] * len(requests)

        def call(feeds: Tensors) -> list[NDArray]:
            padded = {name: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1)) for name, value in feeds.items()}
            return [value[:rows] for value in self.graph.infer(padded, self.outputs)]

        try:
            return list(run_as_one(requests, self.inputs, self.outputs, call))
        except (RuntimeError, ValueError, TypeError) as error:
            return [self._error(error)] * len(requests)

    def _error(self, error: Exception) -> Exception:
        """Shapes that do not fit are found while the run is prepared; anything else is the engine's own failure."""
        text = str(error)
        if isinstance(error, ValueError) or any(word in text for word in ("shape", "Shape", "dimension", "broadcast")):
            return InvalidRequestError(f"{self.name}: {last_line(error)}")
        return EngineError(f"{self.name}: {last_line(error)}")


class MeasuredGraph:
    """What the process that measures memory runs; `parameters` are the config's, as JSON.

    Runs are measured on a graph for all shapes, whose memory is free again after them; `kept_bytes` are what graphs compiled
    for one shape each may take besides.
    """

    def __init__(self, file: str, parameters: str) -> None:
        wanted: dict[str, str] = json.loads(parameters)
        self.kept_bytes = kept_bytes(weights_bytes(Path(file)), shapes_memory(wanted))
        self._graph = load_graph(Path(file), {**wanted, SHAPES_PARAMETER: "0"})
        self._names = [output.get_any_name() for output in self._graph.outputs]

    def __call__(self, feeds: Tensors) -> None:
        self._graph.infer(feeds, self._names)


def _ports(ports: Sequence[Any], declared: Sequence[Mapping[str, Any]]) -> list[Port]:
    """A tensor may have several names, of which the config's is the one that counts."""
    wanted = {item["name"] for item in declared}
    made = []
    for port in ports:
        name = next((name for name in sorted(port.get_names()) if name in wanted), None) or port.get_any_name()
        kind = port.get_element_type().get_type_name()
        made.append(Port(name, kind, _TYPES.get(kind, ""), len(port.get_partial_shape())))
    return made
