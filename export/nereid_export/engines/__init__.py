"""The engines that export can build, one file each; this registry is all that knows them all."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from nereid_export.engines.base import EngineBuilder
from nereid_export.engines.onnxruntime import OnnxRuntime
from nereid_export.engines.openvino import OpenVino
from nereid_export.engines.plan_options import PlanOptions, option
from nereid_export.engines.tensorrt import TensorRt
from nereid_export.engines.tensorrt_rtx import TensorRtRtx
from nereid_export.engines.torch_aoti import TorchAoti
from nereid_export.errors import ExportError


class Engine(StrEnum):
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    TORCH = "torch"
    AUTO = "auto"
    """Not one of `BUILDERS`: several are measured, and each component gets its own."""


BUILDERS: Mapping[Engine, EngineBuilder] = {
    Engine.ONNXRUNTIME: OnnxRuntime(),
    Engine.OPENVINO: OpenVino(),
    Engine.TENSORRT: TensorRt(),
    Engine.TENSORRT_RTX: TensorRtRtx(),
    Engine.TORCH: TorchAoti(),
}


def require_options(engine: Engine, plan: PlanOptions) -> None:
    """Raise ExportError for an option that the engine does not have; `auto` has none of one engine's."""
    for name in plan.asked():
        if engine is Engine.AUTO or name not in BUILDERS[engine].options:
            having = ", ".join(other for other, builder in BUILDERS.items() if name in builder.options)
            raise ExportError(
                f"{option(name)} is not allowed with --engine {engine}; it must be left out, or the engine be {having}"
            )
