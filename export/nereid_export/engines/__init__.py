"""The engines that export can build, one file each; this registry is all that knows them all."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from nereid_export.engines.base import EngineBuilder
from nereid_export.engines.onnxruntime import OnnxRuntime
from nereid_export.engines.openvino import OpenVino
from nereid_export.engines.tensorrt import TensorRt
from nereid_export.engines.torch_aoti import TorchAoti


class Engine(StrEnum):
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TORCH = "torch"


BUILDERS: Mapping[Engine, EngineBuilder] = {
    Engine.ONNXRUNTIME: OnnxRuntime(),
    Engine.OPENVINO: OpenVino(),
    Engine.TENSORRT: TensorRt(),
    Engine.TORCH: TorchAoti(),
}
