"""ONNX Runtime: the exported graph itself, served by Triton's `onnxruntime` backend or the stand-in of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
from torch import nn

from nereid_export.components import Component
from nereid_export.engines.base import Precision, Run, Target
from nereid_export.engines.onnx_graph import export_onnx
from nereid_export.engines.triton_config import place_on_gpu
from nereid_export.frame import Device


class OnnxRuntime:
    backend = "onnxruntime"
    filename = "model.onnx"
    packages = ("onnx", "onnxruntime")
    precisions = (Precision.FP32, Precision.FP16)
    options = ()

    def require(self, target: Target) -> None:
        """It is always here; an export for a card that is not is checked on the processor."""

    def unchecked(self, target: Target) -> str | None:
        return None

    def build(self, component: Component, module: nn.Module, folder: Path, target: Target) -> None:
        export_onnx(component, module, folder / self.filename, target.of(component))

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        providers = ["CPUExecutionProvider"]
        if target.device is Device.CUDA and "CUDAExecutionProvider" in ort.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(str(folder / self.filename), options, providers=providers)
        return lambda inputs, outputs: dict(zip(outputs, session.run(list(outputs), dict(inputs)), strict=True))

    def probe(self, component: Component, target: Target) -> str | None:
        return "nereid.engines.onnx_session:runner" if target.device is Device.CPU else None

    def configure(self, config: Any, component: Component, target: Target) -> None:
        if target.device is Device.CUDA:
            place_on_gpu(config)
            config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
