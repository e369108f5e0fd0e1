"""An ONNX file to a TensorRT plan, through TensorRT's Python API; runs only where TensorRT and a GPU are.

Written against the API reference of TensorRT 10 (IBuilder, OnnxParser, IOptimizationProfile); see README for what was run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nereid_export.components import Component, TensorSpec, sizes_at
from nereid_export.errors import ExportError
from nereid_export.onnx_engine import Precision

NEEDS_CONTAINER = (
    "--engine tensorrt needs TensorRT and an NVIDIA GPU, which are not here; "
    "run it in NVIDIA's container with `make docker-export ENGINE=tensorrt CHECKPOINT=...`"
)


@dataclass(frozen=True, slots=True)
class ProfileRange:
    """Smallest, most usual and largest value of each named dimension, and of the batch."""

    minimum: Mapping[str, int]
    optimum: Mapping[str, int]
    maximum: Mapping[str, int]


def profile_range(component: Component, max_batch_size: int, default_side: int, max_side: int, scale: int) -> ProfileRange:
    """The range an engine is optimised for: pictures from 8 latents a side up to `max_side` pixels."""

    def sizes(side: int, batch: int) -> dict[str, int]:
        return {"batch": batch, **sizes_at(component, side, scale)}

    smallest = min(default_side, 8 * scale)
    return ProfileRange(
        sizes(smallest, 1),
        sizes(default_side, max(1, max_batch_size // 2)),
        sizes(max(max_side, default_side), max_batch_size),
    )


def input_shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A concrete shape of one input, batch first."""
    return (sizes["batch"], *(sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims))


def import_tensorrt() -> Any:
    """The tensorrt module; raises ExportError with what to do where it cannot be used."""
    try:
        import tensorrt  # pyright: ignore[reportMissingImports]

        tensorrt.Builder  # noqa: B018 - the package installs without its libraries; this touches them
    except (ImportError, OSError, AttributeError, RuntimeError):
        raise ExportError(NEEDS_CONTAINER) from None
    return tensorrt


def build_plan(component: Component, onnx_file: Path, plan: Path, precision: Precision, profile: ProfileRange) -> None:
    """Build and write a serialized engine; raises ExportError with the parser's first message where the graph is refused."""
    trt = import_tensorrt()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        raise ExportError(f"{component.name}: TensorRT cannot read the graph: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    if precision is Precision.FP16 and not component.keep_fp32:
        config.set_flag(trt.BuilderFlag.FP16)
    shapes = builder.create_optimization_profile()
    for spec in component.inputs:
        ranges = (profile.minimum, profile.optimum, profile.maximum)
        shapes.set_shape(spec.name, *(input_shape(spec, sizes) for sizes in ranges))
    config.add_optimization_profile(shapes)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ExportError(f"{component.name}: TensorRT could not build an engine; see its messages above")
    plan.write_bytes(built)


def run_plan(plan: Path, feeds: Mapping[str, Any], outputs: list[str]) -> dict[str, Any]:
    """Run a plan once on torch CUDA tensors, for the numeric check; returns numpy arrays."""
    import torch

    trt = import_tensorrt()
    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan.read_bytes())
    context = engine.create_execution_context()
    held = {name: value.cuda().contiguous() for name, value in feeds.items()}
    for name, value in held.items():
        context.set_input_shape(name, tuple(value.shape))
        context.set_tensor_address(name, value.data_ptr())
    made = {name: torch.empty(tuple(context.get_tensor_shape(name)), device="cuda") for name in outputs}
    for name, value in made.items():
        context.set_tensor_address(name, value.data_ptr())
    stream = torch.cuda.current_stream()
    if not context.execute_async_v3(stream.cuda_stream):
        raise ExportError(f"{plan.name}: TensorRT could not run the engine")
    stream.synchronize()
    return {name: value.cpu().numpy() for name, value in made.items()}
