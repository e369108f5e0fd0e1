"""An ONNX file of one EPContext node, by which ONNX Runtime's execution provider for TensorRT for RTX runs a plan beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from nereid_export.components import Component, TensorSpec
from nereid_export.engines.onnx_graph import OPSET

PROVIDER = "NvTensorRTRTXExecutionProvider"
_DOMAIN = "com.microsoft"
_DTYPES = {torch.float32: TensorProto.FLOAT, torch.int32: TensorProto.INT32}


def write_ep_context(component: Component, file: Path, plan: str, *, version: str, capabilities: Sequence[str]) -> None:
    """Write `file` for the plan of that name in the same folder; `version` is of the library that built it."""
    node = helper.make_node(
        "EPContext",
        [spec.name for spec in component.inputs],
        [spec.name for spec in component.outputs],
        name=component.name,
        domain=_DOMAIN,
        source=PROVIDER,
        main_context=0,
        embed_mode=0,
        ep_cache_context=plan,
        ep_sdk_version=version,
        hardware_architecture=",".join(capabilities),
        partition_name=component.name,
        onnx_model_filename="",
    )
    inputs, outputs = ([_value(spec) for spec in specs] for specs in (component.inputs, component.outputs))
    graph = helper.make_graph([node], component.name, inputs, outputs)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(_DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10, producer_name="nereid"), str(file))


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _DTYPES[spec.dtype], ["batch", *spec.dims])
