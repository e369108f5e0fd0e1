"""TensorRT: an ONNX file to a plan, through TensorRT's Python API; runs only where TensorRT and a GPU are.

Precision is in the graph (weights and casts of a half-precision export, Q/DQ nodes of a quantised one), never a builder's flag:
TensorRT 11 has only strongly typed networks, for which 10 has a creation flag. TensorRT for RTX (`tensorrt_rtx`) has the same
API, builds without a GPU, and goes through `build_plan` too; see README for what was run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from nereid_export.components import Component
from nereid_export.engines.base import Samples, ShapeRange, Target, input_shape, shape_ranges
from nereid_export.engines.check import Run
from nereid_export.engines.onnx_graph import QDQ_OPSET, passing_onnx
from nereid_export.engines.onnx_quantised import QdqGraph, write_static
from nereid_export.engines.plan_account import PlanAccount, listener
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision
from nereid_export.engines.triton_config import place_on_gpu
from nereid_export.errors import ExportError
from nereid_export.quantisation import put_back, smoothed

NEEDS_CONTAINER = (
    "--engine tensorrt needs TensorRT and an NVIDIA GPU, which are not here; "
    "run it in NVIDIA's container with `make docker-export ENGINE=tensorrt CHECKPOINT=...`"
)

PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)
"""INT8 has float16 between its quantised layers, or float32 where a component asks for it."""

_FLAGS = {"version_compatible": "VERSION_COMPATIBLE", "weight_streaming": "WEIGHT_STREAMING", "refit": "REFIT"}


class TensorRt:
    backend = "tensorrt"
    filename = "model.plan"
    packages = ("onnx", "tensorrt")  # a plan is only read by the TensorRT that wrote it
    quantisers = ("onnxruntime",)
    precisions = PRECISIONS
    options = ("timing_cache", "version_compatible", "weight_streaming", "refit", "bucket")

    def require(self, target: Target) -> None:
        if (cache := target.plan.timing_cache) is not None and (not cache.parent.is_dir() or cache.is_dir()):
            raise ExportError(f"--timing-cache: {cache} is not allowed; it must be a file in a folder that exists")
        self.require_run(target)

    def require_run(self, target: Target) -> None:
        import_tensorrt()

    def unchecked(self, target: Target) -> str | None:
        return None

    def build(self, component: Component, module: nn.Module, folder: Path, target: Target, samples: Samples) -> dict[str, Any]:
        def write(graph: Path) -> dict[str, Any]:
            plan = build_plan(import_tensorrt(), component, graph, shape_ranges(component, target), target.plan)
            (folder / self.filename).write_bytes(plan.data)
            return {} if plan.account is None else {"plan": plan.account.facts()}

        return build_with(component, module, folder, target, samples, write)

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        return load_plan(import_tensorrt(), component, folder / self.filename, target)

    def probe(self, component: Component, target: Target) -> str | None:
        return None

    def configure(self, config: Any, component: Component, target: Target) -> None:
        config.parameters.clear()  # the source's are ONNX Runtime's
        place_on_gpu(config)
        if (profiles := len(shape_ranges(component, target))) > 1:
            # The backend uses profile 0 alone unless more are named; of those that a request fits, it takes the nearest.
            config.instance_group[0].profile.extend(str(number) for number in range(profiles))


def import_tensorrt() -> Any:
    """The tensorrt module; raises ExportError with what to do where it cannot be used."""
    try:
        import tensorrt  # pyright: ignore[reportMissingImports]

        tensorrt.Builder  # noqa: B018 - the package installs without its libraries; this touches them
    except (ImportError, OSError, AttributeError, RuntimeError):
        raise ExportError(NEEDS_CONTAINER) from None
    return tensorrt


def build_with(
    component: Component,
    module: nn.Module,
    folder: Path,
    target: Target,
    samples: Samples,
    write: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """Pass the graph that the target's precision asks for to `write`, which makes a plan of it.

    What int8 costs is measured on the graph with Q/DQ nodes itself, in ONNX Runtime, which computes what they say.
    """
    precision = target.of(component)
    if precision is not Precision.INT8:
        with passing_onnx(component, module, folder, precision) as graph:
            return write(graph)
    norms = smoothed(component, module, samples)
    between = Precision.FP32 if component.keep_fp32 else Precision.FP16
    with passing_onnx(component, module, folder, between, QDQ_OPSET) as graph:
        file = graph.with_name("int8.onnx")
        write_static(graph, file, samples.ranges, for_tensorrt=True)
        quantised = QdqGraph(file, graph)
        kept, facts = put_back(component, quantised, samples, norms)
        quantised.write(kept, file)
        return write(file) | facts


# --- building, with the module `tensorrt` or `tensorrt_rtx` ---


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialized engine, as the library's buffer, and the builder's account of it, if the library gives one."""

    data: Any
    account: PlanAccount | None


def build_plan(trt: Any, component: Component, graph: Path, ranges: Sequence[ShapeRange], options: PlanOptions) -> Plan:
    """A plan of an ONNX file, quantised ones included, with one optimisation profile for each range.

    Raises ExportError with TensorRT's first message where it refuses the graph, an option, or to build.
    """
    logger = listener(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise ExportError(f"{component.name}: TensorRT cannot read the graph: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for shapes in ranges:
        profile = builder.create_optimization_profile()
        for spec in component.inputs:
            sizes = (shapes.minimum, shapes.optimum, shapes.maximum)
            profile.set_shape(spec.name, *(input_shape(spec, each) for each in sizes))
        config.add_optimization_profile(profile)
    for name, flag in _FLAGS.items():
        if getattr(options, name):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.compute_capability:
        chosen = capabilities_of(trt, options.compute_capability)
        config.num_compute_capabilities = len(chosen)
        for index, capability in enumerate(chosen):
            config.set_compute_capability(capability, index)
    if options.timing_cache is not None:
        _read_timing_cache(config, options.timing_cache)
    built = builder.build_serialized_network(network, config)
    if built is None:
        said = logger.errors[0] if logger.errors else "see its messages above"
        raise ExportError(f"{component.name}: TensorRT could not build an engine: {said}")
    if options.timing_cache is not None:
        _write_timing_cache(config, options.timing_cache)
    return Plan(built, logger.account)


def capabilities_of(trt: Any, wanted: Sequence[str]) -> list[Any]:
    """Compute capabilities ("8.9") as the library's; raises ExportError naming one that it does not have."""
    known = {name: value for name, value in vars(trt.ComputeCapability).items() if name.startswith("SM")}
    for each in wanted:
        if f"SM{each.replace('.', '')}" not in known or "." not in each:
            allowed = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in sorted(known, key=lambda name: int(name[2:])))
            raise ExportError(f"--compute-capability: {each!r} is not allowed; it must be one of {allowed}")
    return [known[f"SM{each.replace('.', '')}"] for each in wanted]


def _strongly_typed(trt: Any) -> int:
    """TensorRT 10's creation flag for what is the only kind of network in 11."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _read_timing_cache(config: Any, file: Path) -> None:
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise ExportError(f"--timing-cache: {file} is not allowed; it must be of this TensorRT and this graphics card")


def _write_timing_cache(config: Any, file: Path) -> None:
    beside = file.with_name(f"{file.name}.new")
    beside.write_bytes(config.get_timing_cache().serialize())
    beside.replace(file)


# --- running, for the check against PyTorch ---


def load_plan(trt: Any, component: Component, file: Path, target: Target) -> Run:
    """A plan on the first graphics card."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    runtime.engine_host_code_allowed = target.plan.version_compatible  # such a plan carries a runtime; this one is our own
    engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise ExportError(f"{component.name}: TensorRT cannot read the plan that it has built; see its messages above")
    return lambda inputs, outputs: _run(component.name, engine, inputs, list(outputs))


def _run(name: str, engine: Any, feeds: Mapping[str, NDArray], outputs: list[str]) -> dict[str, NDArray]:
    """Run once on torch CUDA tensors, with the general profile."""
    import torch

    context = engine.create_execution_context()
    stream = torch.cuda.current_stream()
    if (general := engine.num_optimization_profiles - 1) > 0:
        context.set_optimization_profile_async(general, stream.cuda_stream)
    held = {key: torch.from_numpy(value).cuda().contiguous() for key, value in feeds.items()}
    for key, value in held.items():
        context.set_input_shape(key, tuple(value.shape))
        context.set_tensor_address(key, value.data_ptr())
    made = {key: torch.empty(tuple(context.get_tensor_shape(key)), device="cuda") for key in outputs}
    for key, value in made.items():
        context.set_tensor_address(key, value.data_ptr())
    if not context.execute_async_v3(stream.cuda_stream):
        raise ExportError(f"{name}: TensorRT could not run the engine")
    stream.synchronize()
    return {key: value.cpu().numpy() for key, value in made.items()}
