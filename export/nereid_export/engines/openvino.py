"""OpenVINO: the graph as IR (`model.xml`, `model.bin`), served by Triton's `openvino` backend or the stand-in of that name.

The backend fixes the batch of a model whose config has a `max_batch_size` (it refuses fewer rows, or pads), so that the
engines have none and the batch is an ordinary first dimension: `denoise`, which packs the rows, batches.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from nereid.engines.openvino_options import BF16_PARAMETER, SHAPES_PARAMETER
from nereid_export.components import Component
from nereid_export.engines.base import Samples, Target
from nereid_export.engines.check import Run
from nereid_export.engines.onnx_graph import passing_onnx
from nereid_export.engines.openvino_quantised import FakeQuantizeGraph, import_nncf, run_graph, static, weights
from nereid_export.engines.precision import Precision
from nereid_export.engines.triton_config import batch_by_shape
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.quantisation import put_back, smoothed


class OpenVino:
    backend = "openvino"
    filename = "model.xml"
    packages = ("onnx", "openvino")
    quantisers = ("nncf",)
    precisions = (Precision.FP32, Precision.BF16, Precision.INT8, Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS)
    options = ("bucket", "threads", "compiled_shapes_mib")

    def require(self, target: Target) -> None:
        self.require_run(target)
        if target.device is not Device.CPU:
            raise ExportError(f"--device: {target.device} is not allowed with --engine openvino; it must be cpu")
        if target.precision.quantised:
            import_nncf()

    def require_run(self, target: Target) -> None:
        try:
            from nereid.engines.openvino_model import computes_bf16
        except ImportError:
            raise ExportError("--engine openvino needs OpenVINO; install it with `pip install 'nereid[serve]'`") from None
        if target.precision is Precision.BF16 and not computes_bf16():
            # It would be computed in float32 without a word, and the check would have checked nothing.
            raise ExportError("--precision: bf16 needs a processor with bfloat16 instructions, which this one lacks; use fp32")

    def unchecked(self, target: Target) -> str | None:
        return None

    def build(
        self, component: Component, module: nn.Module, folder: Path, target: Target, samples: Samples
    ) -> dict[str, Any] | None:
        import openvino as ov

        precision = target.of(component)
        facts: dict[str, Any] = {}
        bits = {Precision.INT8_WEIGHTS: 8, Precision.INT4_WEIGHTS: 4}.get(precision)
        norms = smoothed(component, module, samples) if precision is Precision.INT8 else 0
        # bfloat16 is a setting of the run: weights stay float32 in the file and are converted when it is loaded.
        with passing_onnx(component, module, folder, Precision.FP32) as file:
            # Not `convert_model`, which sends telemetry; this reads the file by the same library.
            graph = ov.Core().read_model(file)
            if precision is Precision.INT8:
                quantised = FakeQuantizeGraph(static(graph, samples.ranges))
                kept, facts = put_back(component, quantised, samples, norms)
                graph = quantised.edited(kept)
            elif bits is not None:
                graph = weights(graph, bits)
            ov.save_model(graph, folder / self.filename, compress_to_fp16=False)
        return facts

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        from nereid.engines.openvino_model import load_graph

        return run_graph(load_graph(folder / self.filename, self._parameters(component, target)))

    def probe(self, component: Component, target: Target) -> str | None:
        return f"nereid.engines.openvino_model:MeasuredGraph:{json.dumps(self._parameters(component, target))}"

    def configure(self, config: Any, component: Component, target: Target) -> None:
        config.parameters.clear()  # the source's are ONNX Runtime's
        batch_by_shape(config)
        for key, value in self._parameters(component, target).items():
            config.parameters[key].string_value = value

    @staticmethod
    def _parameters(component: Component, target: Target) -> dict[str, str]:
        made = {BF16_PARAMETER: "YES"} if target.of(component) is Precision.BF16 else {}
        if target.plan.threads:
            made["INFERENCE_NUM_THREADS"] = str(target.plan.threads)
        if target.plan.compiled_shapes_mib:
            made[SHAPES_PARAMETER] = str(target.plan.compiled_shapes_mib)
        return made
