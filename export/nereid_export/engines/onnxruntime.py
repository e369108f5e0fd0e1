"""ONNX Runtime: the exported graph itself, served by Triton's `onnxruntime` backend or the stand-in of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
from torch import nn

from nereid_export.components import Component
from nereid_export.engines.base import Samples, Target
from nereid_export.engines.check import Run
from nereid_export.engines.onnx_attention import fuse_attention
from nereid_export.engines.onnx_graph import OPSET, export_onnx, passing_onnx, run_file
from nereid_export.engines.onnx_quantised import QdqGraph, write_dynamic, write_static, write_weights
from nereid_export.engines.precision import Precision
from nereid_export.engines.triton_config import place_on_gpu
from nereid_export.frame import Device
from nereid_export.quantisation import put_back, smoothed


class OnnxRuntime:
    backend = "onnxruntime"
    filename = "model.onnx"
    packages = ("onnx", "onnxruntime")
    quantisers = ()  # ONNX Runtime's own tools
    precisions = (
        Precision.FP32,
        Precision.FP16,
        Precision.INT8,
        Precision.INT8_DYNAMIC,
        Precision.INT8_WEIGHTS,
        Precision.INT4_WEIGHTS,
    )
    options = ("bucket", "threads", "plain_attention")

    def require(self, target: Target) -> None:
        """It is always here; an export for a card that is not is checked on the processor."""

    def require_run(self, target: Target) -> None:
        """It is always here."""

    def unchecked(self, target: Target) -> str | None:
        return None

    def build(
        self, component: Component, module: nn.Module, folder: Path, target: Target, samples: Samples
    ) -> dict[str, Any] | None:
        precision, file = target.of(component), folder / self.filename
        if not precision.quantised:
            export_onnx(component, module, file, precision, component.opset or OPSET)
            self._fuse(file, target, precision)
            return None
        norms = smoothed(component, module, samples) if precision is Precision.INT8 else 0
        with passing_onnx(component, module, folder, Precision.FP32) as graph:
            if precision is Precision.INT8:
                write_static(graph, file, samples.ranges)
                self._fuse(file, target, precision)  # what is measured is what is published, to the bit
                quantised = QdqGraph(file, graph)
                kept, facts = put_back(component, quantised, samples, norms)
                quantised.write(kept, file)
                return facts
            if precision is Precision.INT8_DYNAMIC:
                write_dynamic(graph, file)
            else:
                write_weights(graph, file, 8 if precision is Precision.INT8_WEIGHTS else 4)
        self._fuse(file, target, precision)
        return None

    @staticmethod
    def _fuse(file: Path, target: Target, precision: Precision) -> None:
        """On the processor ONNX Runtime's attention is for float32 alone; on cards the operator has never been run."""
        if target.device is Device.CPU and not precision.half and not target.plan.plain_attention:
            fuse_attention(file)

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        cuda = "CUDAExecutionProvider"
        here = target.device is Device.CUDA and cuda in ort.get_available_providers()
        return run_file(folder / self.filename, *([cuda] if here else []), threads=target.plan.threads)

    def probe(self, component: Component, target: Target) -> str | None:
        return "nereid.engines.onnx_session:runner" if target.device is Device.CPU else None

    def configure(self, config: Any, component: Component, target: Target) -> None:
        if target.plan.threads:
            config.parameters["intra_op_thread_count"].string_value = str(target.plan.threads)
        if target.device is Device.CUDA:
            place_on_gpu(config)
            config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
