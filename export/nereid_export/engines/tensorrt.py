"""TensorRT: an ONNX file to a plan, through TensorRT's Python API; runs only where TensorRT and a GPU are.

Precision is in the graph (a half-precision export has float16 weights and casts), never a builder's flag: TensorRT 11 has only
strongly typed networks, for which 10 has a creation flag. TensorRT for RTX (`tensorrt_rtx`) has the same API, builds without a
GPU, and goes through `build_plan` in the tests; see README for what was run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from nereid_export.components import Component
from nereid_export.engines.base import Precision, Run, ShapeRange, Target, input_shape, shape_range
from nereid_export.engines.onnx_graph import passing_onnx
from nereid_export.engines.triton_config import place_on_gpu
from nereid_export.errors import ExportError

NEEDS_CONTAINER = (
    "--engine tensorrt needs TensorRT and an NVIDIA GPU, which are not here; "
    "run it in NVIDIA's container with `make docker-export ENGINE=tensorrt CHECKPOINT=...`"
)


class TensorRt:
    backend = "tensorrt"
    filename = "model.plan"
    packages = ("onnx", "tensorrt")  # a plan is only read by the TensorRT that wrote it
    precisions = (Precision.FP32, Precision.FP16)

    def require(self, target: Target) -> None:
        import_tensorrt()

    def build(self, component: Component, module: nn.Module, folder: Path, target: Target) -> None:
        with passing_onnx(component, module, folder, target.of(component)) as graph:
            built = build_plan(import_tensorrt(), component, graph, shape_range(component, target))
            (folder / self.filename).write_bytes(built)

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        trt = import_tensorrt()
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        engine = runtime.deserialize_cuda_engine((folder / self.filename).read_bytes())
        if engine is None:
            raise ExportError(f"{component.name}: TensorRT cannot read the plan that it has built; see its messages above")
        return lambda inputs, outputs: _run(component.name, engine, inputs, list(outputs))

    def probe(self, component: Component, target: Target) -> str | None:
        return None

    def configure(self, config: Any, component: Component, target: Target) -> None:
        config.parameters.clear()  # the source's are ONNX Runtime's
        place_on_gpu(config)


def import_tensorrt() -> Any:
    """The tensorrt module; raises ExportError with what to do where it cannot be used."""
    try:
        import tensorrt  # pyright: ignore[reportMissingImports]

        tensorrt.Builder  # noqa: B018 - the package installs without its libraries; this touches them
    except (ImportError, OSError, AttributeError, RuntimeError):
        raise ExportError(NEEDS_CONTAINER) from None
    return tensorrt


def build_plan(trt: Any, component: Component, graph: Path, shapes: ShapeRange, compute_capability: str = "") -> Any:
    """A serialized engine; `trt` is the module `tensorrt` or `tensorrt_rtx`.

    `compute_capability` ("8.9") is TensorRT for RTX's, which builds for cards that are not there. Raises ExportError with the
    parser's first message where the graph is refused.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise ExportError(f"{component.name}: TensorRT cannot read the graph: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for spec in component.inputs:
        ranges = (shapes.minimum, shapes.optimum, shapes.maximum)
        profile.set_shape(spec.name, *(input_shape(spec, sizes) for sizes in ranges))
    config.add_optimization_profile(profile)
    if compute_capability:
        _build_for(trt, config, compute_capability)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ExportError(f"{component.name}: TensorRT could not build an engine; see its messages above")
    return built


def _strongly_typed(trt: Any) -> int:
    """TensorRT 10's creation flag for what is the only kind of network in 11."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _build_for(trt: Any, config: Any, compute_capability: str) -> None:
    known = {name: value for name, value in vars(trt.ComputeCapability).items() if name.startswith("SM")}
    wanted = f"SM{compute_capability.replace('.', '')}"
    if wanted not in known:
        allowed = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in sorted(known, key=lambda name: int(name[2:])))
        raise ExportError(f"compute capability: {compute_capability!r} is not allowed; it must be one of {allowed}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[wanted], 0)


def _run(name: str, engine: Any, feeds: Mapping[str, NDArray], outputs: list[str]) -> dict[str, NDArray]:
    """Run once on torch CUDA tensors, for the numeric check."""
    import torch

    context = engine.create_execution_context()
    held = {key: torch.from_numpy(value).cuda().contiguous() for key, value in feeds.items()}
    for key, value in held.items():
        context.set_input_shape(key, tuple(value.shape))
        context.set_tensor_address(key, value.data_ptr())
    made = {key: torch.empty(tuple(context.get_tensor_shape(key)), device="cuda") for key in outputs}
    for key, value in made.items():
        context.set_tensor_address(key, value.data_ptr())
    stream = torch.cuda.current_stream()
    if not context.execute_async_v3(stream.cuda_stream):
        raise ExportError(f"{name}: TensorRT could not run the engine")
    stream.synchronize()
    return {key: value.cpu().numpy() for key, value in made.items()}
