"""A component to an ONNX file, and the check that the file computes what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from nereid_export.components import Component, TensorSpec
from nereid_export.errors import ExportError
from nereid_export.silence import quiet

OPSET = 18
SMALL_MODEL_BYTES = 1_500_000_000
"""Above this, weights go to a file of their own: a protobuf holds 2 GB at most."""


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"


ERROR_BOUNDS = {Precision.FP32: 1e-4, Precision.FP16: 1e-2}
"""Largest relative error (norm of the difference over norm of the reference) with which an engine is published."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of an engine with PyTorch in float32, on random inputs."""

    output: str
    rows: int
    sizes: dict[str, int]
    relative_error: float
    largest_error: float


def export_onnx(component: Component, module: nn.Module, file: Path, precision: Precision) -> None:
    """Write `file` (and `model.onnx.data` beside it for large models) with every named dimension dynamic."""
    inputs = _example(component, rows=2)
    names = [spec.name for spec in component.inputs]
    outputs = [spec.name for spec in component.outputs]
    if precision is Precision.FP16 and not component.keep_fp32:
        module = module.half()
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    with torch.no_grad(), quiet(printing=True):
        if size < SMALL_MODEL_BYTES:
            # The tracing exporter takes a second where the newer one takes half a minute, with equal graphs.
            axes = {
                spec.name: {0: "batch"} | {i: dim for i, dim in enumerate(spec.dims, 1) if isinstance(dim, str)}
                for spec in (*component.inputs, *component.outputs)
            }
            torch.onnx.export(
                module,
                inputs,
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=names,
                output_names=outputs,
                dynamic_axes=axes,
            )
        else:
            torch.onnx.export(
                module,
                inputs,
                str(file),
                dynamo=True,
                external_data=True,
                opset_version=OPSET,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=_dynamic_shapes(component),
            )
    _check_dimensions(component, file)


def _example(component: Component, rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(spec.random(rows, component.example, generator) for spec in component.inputs)


def _dynamic_shapes(component: Component) -> tuple[object, ...]:
    def shape(spec: TensorSpec) -> dict[int, object]:
        named = {i: torch.export.Dim.DYNAMIC for i, dim in enumerate(spec.dims, 1) if isinstance(dim, str)}
        return {0: torch.export.Dim.DYNAMIC, **named}

    shapes = [shape(spec) for spec in component.inputs]
    # The UNet's extra inputs arrive as *extra, which the exporter sees as one tuple.
    return (*shapes[:3], tuple(shapes[3:])) if len(shapes) > 3 else tuple(shapes)


def _check_dimensions(component: Component, file: Path) -> None:
    """An exporter may quietly fix a dimension at the example's size; that must not be published."""
    graph = onnx.load(str(file), load_external_data=False).graph
    found = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)}
    for spec in component.inputs:
        if spec.name not in found:
            raise ExportError(f"{component.name}: the exported graph has lost its input {spec.name}")
        for i, dim in enumerate(("batch", *spec.dims)):
            if isinstance(dim, str) and found[spec.name][i].HasField("dim_value"):
                fixed = found[spec.name][i].dim_value
                raise ExportError(f"{component.name}: the exported graph has fixed {dim} of {spec.name} at {fixed}")


@dataclass(frozen=True, slots=True)
class Reference:
    """Random inputs of one check, and what PyTorch in float32 makes of them."""

    rows: int
    sizes: dict[str, int]
    inputs: dict[str, Tensor]
    outputs: dict[str, np.ndarray]


def reference_outputs(component: Component, module: nn.Module) -> list[Reference]:
    """What the engine will have to compute, at several batch and picture sizes."""
    references = []
    for number, (rows, sizes) in enumerate(component.checks):
        generator = torch.Generator().manual_seed(number + 1)
        inputs = {spec.name: spec.random(rows, sizes, generator) for spec in component.inputs}
        with torch.no_grad():
            made = module(*inputs.values())
        values = made if isinstance(made, tuple) else (made,)
        outputs = {spec.name: value.numpy() for spec, value in zip(component.outputs, values, strict=True)}
        references.append(Reference(rows, sizes, inputs, outputs))
    return references


def run_onnx(file: Path, device: str, inputs: Mapping[str, Tensor], outputs: list[str]) -> dict[str, np.ndarray]:
    """Run the engine once, on CUDA where that was asked for and is there."""
    providers = ["CPUExecutionProvider"]
    if device == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(file), options, providers=providers)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    return dict(zip(outputs, session.run(outputs, feeds), strict=True))


def compare(
    references: list[Reference], run: Callable[[Mapping[str, Tensor], list[str]], Mapping[str, np.ndarray]]
) -> list[Check]:
    """Run the engine on every reference's inputs and measure how far it is off."""
    checks = []
    for reference in references:
        made = run(reference.inputs, list(reference.outputs))
        for name, theirs in reference.outputs.items():
            checks.append(_compare(name, reference.rows, reference.sizes, made[name], theirs))
    return checks


def _compare(name: str, rows: int, sizes: dict[str, int], ours: np.ndarray, theirs: np.ndarray) -> Check:
    if ours.shape != theirs.shape:
        raise ExportError(f"{name}: the engine gives shape {ours.shape}, PyTorch {theirs.shape}")
    difference = ours.astype(np.float64) - theirs
    scale = float(np.linalg.norm(theirs)) or 1.0
    return Check(name, rows, sizes, float(np.linalg.norm(difference)) / scale, float(np.abs(difference).max()))


def refuse_above_bound(component: Component, checks: list[Check], precision: Precision) -> None:
    """Raise ExportError for an engine too far from PyTorch to be published."""
    bound = ERROR_BOUNDS[Precision.FP32 if component.keep_fp32 else precision]
    for check in checks:
        if not check.relative_error <= bound:  # NaN included
            raise ExportError(
                f"{component.name}: relative error {check.relative_error:.2g} of {check.output} against PyTorch is above "
                f"the bound of {bound:g} for {precision}; nothing was published"
            )
