"""A component to an ONNX file, which is the form that every engine but PyTorch's own is built from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import nn

from nereid_export.components import Component
from nereid_export.engines.check import Run
from nereid_export.engines.onnx_names import name_by_module
from nereid_export.engines.precision import Precision
from nereid_export.engines.traced import dynamic_shapes, example_inputs, one_scale
from nereid_export.errors import ExportError
from nereid_export.publish import full_disk_named
from nereid_export.silence import quiet

OPSET = 18
QDQ_OPSET = 19
"""From which on scales of Q/DQ nodes may be float16."""
SMALL_MODEL_BYTES = 1_500_000_000
"""Above this, weights go to a file of their own: a protobuf holds 2 GB at most."""


def keep_scores_in_float32(module: nn.Module) -> None:
    """Of attention layers whose config says `upcast_attention`: their scores are beyond float16's range (SD 2.1's, for one).

    A processor cannot see that where it computes float16 in float32, as ONNX Runtime's does.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for layer in module.modules():
        if isinstance(layer, Attention) and layer.upcast_attention:
            layer.upcast_softmax = True
            layer.set_processor(AttnProcessor())  # the fused one has no scores to upcast


def export_onnx(component: Component, module: nn.Module, file: Path, precision: Precision, opset: int = OPSET) -> None:
    """Write `file` (and `model.onnx.data` beside it for large models) with every named dimension dynamic.

    In fp16 and bf16 the weights and all that is computed from them are of that type; inputs and outputs stay float32.
    """
    inputs = example_inputs(component)
    names = [spec.name for spec in component.inputs]
    outputs = [spec.name for spec in component.outputs]
    if precision is Precision.FP16:
        keep_scores_in_float32(module)
    if precision is not Precision.FP32:
        module = module.to(torch.float16 if precision is Precision.FP16 else torch.bfloat16)
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
                opset_version=opset,
                input_names=names,
                output_names=outputs,
                dynamic_axes=axes,
            )
        else:
            with one_scale():
                torch.onnx.export(
                    module,
                    inputs,
                    str(file),
                    dynamo=True,
                    external_data=True,
                    opset_version=opset,
                    input_names=names,
                    output_names=outputs,
                    dynamic_shapes=dynamic_shapes(component),
                )
            name_by_module(file)
    _check_dimensions(component, file)


def run_file(file: Path, *providers: str, threads: int = 0) -> Run:
    """A graph in ONNX Runtime, by these providers before the processor; with 0 threads, as many as it chooses."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(file), options, providers=[*providers, "CPUExecutionProvider"])
    return lambda inputs, outputs: dict(zip(outputs, session.run(list(outputs), dict(inputs)), strict=True))


@contextmanager
def passing_onnx(
    component: Component, module: nn.Module, folder: Path, precision: Precision, opset: int = OPSET
) -> Iterator[Path]:
    """The graph as a file, in a folder of its own within `folder`, that is there only while another engine is made of it."""
    passed = folder / "graph"
    passed.mkdir()
    try:
        with full_disk_named(folder):  # asked while this file is there
            export_onnx(component, module, passed / "model.onnx", precision, opset)
            yield passed / "model.onnx"
    finally:
        shutil.rmtree(passed)


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
