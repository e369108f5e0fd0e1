"""TensorRT for RTX: plans for graphics cards that need not be here, run by ONNX Runtime's execution provider of that name.

Neither Triton's TensorRT backend nor its ONNX Runtime backend runs such a plan: a Triton with the stand-in for the latter does,
on a machine with the card. So the engine is an ONNX file of one EPContext node, and the plan beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from nereid.engines.onnx_plugins import NV_TENSORRT_RTX
from nereid_export.components import Component
from nereid_export.engines.base import Samples, Target, shape_ranges
from nereid_export.engines.check import Run
from nereid_export.engines.ep_context import write_ep_context
from nereid_export.engines.plan_account import difference
from nereid_export.engines.tensorrt import PRECISIONS, build_plan, build_with, capabilities_of, load_plan
from nereid_export.engines.triton_config import place_on_gpu
from nereid_export.errors import ExportError

PLAN = "model.plan"


class TensorRtRtx:
    backend = "onnxruntime"
    filename = "model.onnx"
    packages = ("onnx", "tensorrt-rtx-cu12")
    quantisers = ("onnxruntime",)
    precisions = PRECISIONS
    options = ("compute_capability", "weight_streaming")

    def require(self, target: Target) -> None:
        capabilities_of(import_tensorrt_rtx(), target.plan.compute_capability)

    def require_run(self, target: Target) -> None:
        import_tensorrt_rtx()

    def unchecked(self, target: Target) -> str | None:
        import torch

        if not torch.cuda.is_available():
            return "TensorRT for RTX builds a plan without a graphics card, but runs it on one, and none is here"
        here = "{}.{}".format(*torch.cuda.get_device_capability())
        if target.plan.compute_capability and here not in target.plan.compute_capability:
            return f"the card here has compute capability {here}, for which the plan is not built"
        return None

    def build(self, component: Component, module: nn.Module, folder: Path, target: Target, samples: Samples) -> dict[str, Any]:
        trt = import_tensorrt_rtx()
        ranges = shape_ranges(component, target)

        def write(graph: Path) -> dict[str, Any]:
            plan = build_plan(trt, component, graph, ranges, target.plan)
            if plan.account is None:
                raise ExportError(f"{component.name}: TensorRT for RTX gives no account of the plan that it has built")
            if (wrong := difference(component, plan.account, ranges)) is not None:
                raise ExportError(f"{component.name}: the plan is not as asked for: {wrong}")
            (folder / PLAN).write_bytes(plan.data)
            capabilities = target.plan.compute_capability
            write_ep_context(component, folder / self.filename, PLAN, version=trt.__version__, capabilities=capabilities)
            return {"plan": plan.account.facts()}

        return build_with(component, module, folder, target, samples, write)

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        return load_plan(import_tensorrt_rtx(), component, folder / PLAN, target)

    def probe(self, component: Component, target: Target) -> str | None:
        return None

    def configure(self, config: Any, component: Component, target: Target) -> None:
        config.parameters.clear()  # the source's are for the processor
        place_on_gpu(config)
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(name=NV_TENSORRT_RTX)


def import_tensorrt_rtx() -> Any:
    """The tensorrt_rtx module; raises ExportError with what to install."""
    try:
        import tensorrt_rtx
    except (ImportError, OSError):
        raise ExportError(
            "--engine tensorrt-rtx needs TensorRT for RTX; install it with `pip install -e './export[tensorrt-rtx]'`"
        ) from None
    return tensorrt_rtx
