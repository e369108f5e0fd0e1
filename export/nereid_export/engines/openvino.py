"""OpenVINO: the graph as IR (`model.xml`, `model.bin`), served by Triton's `openvino` backend or the stand-in of that name.

The backend fixes the batch of a model whose config has a `max_batch_size` (it refuses fewer rows, or pads), so that the
engines have none and the batch is an ordinary first dimension: `denoise`, which packs the rows, batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from nereid.engines.openvino_options import BF16_PARAMETER
from nereid_export.components import Component
from nereid_export.engines.base import Precision, Run, Target
from nereid_export.engines.onnx_graph import passing_onnx
from nereid_export.engines.triton_config import batch_by_shape
from nereid_export.errors import ExportError
from nereid_export.frame import Device


class OpenVino:
    backend = "openvino"
    filename = "model.xml"
    packages = ("onnx", "openvino")
    precisions = (Precision.FP32, Precision.BF16)
    options = ()

    def require(self, target: Target) -> None:
        try:
            from nereid.engines.openvino_model import computes_bf16
        except ImportError:
            raise ExportError("--engine openvino needs OpenVINO; install it with `pip install 'nereid[serve]'`") from None
        if target.device is not Device.CPU:
            raise ExportError(f"--device: {target.device} is not allowed with --engine openvino; it must be cpu")
        if target.precision is Precision.BF16 and not computes_bf16():
            # It would be computed in float32 without a word, and the check would have checked nothing.
            raise ExportError("--precision: bf16 needs a processor with bfloat16 instructions, which this one lacks; use fp32")

    def unchecked(self, target: Target) -> str | None:
        return None

    def build(self, component: Component, module: nn.Module, folder: Path, target: Target) -> None:
        import openvino as ov

        # bfloat16 is a setting of the run: weights stay float32 in the file and are converted when it is loaded.
        with passing_onnx(component, module, folder, Precision.FP32) as graph:
            # Not `convert_model`, which sends telemetry; this reads the file by the same library.
            ov.save_model(ov.Core().read_model(graph), folder / self.filename, compress_to_fp16=False)

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        from nereid.engines.openvino_model import compile_file, infer

        compiled = compile_file(folder / self.filename, self._parameters(component, target))
        request = compiled.create_infer_request()
        return lambda inputs, outputs: dict(zip(outputs, infer(request, inputs, outputs), strict=True))

    def probe(self, component: Component, target: Target) -> str | None:
        return f"nereid.engines.openvino_model:runner_{target.of(component)}"

    def configure(self, config: Any, component: Component, target: Target) -> None:
        config.parameters.clear()  # the source's are ONNX Runtime's
        batch_by_shape(config)
        for key, value in self._parameters(component, target).items():
            config.parameters[key].string_value = value

    @staticmethod
    def _parameters(component: Component, target: Target) -> dict[str, str]:
        return {BF16_PARAMETER: "YES"} if target.of(component) is Precision.BF16 else {}
