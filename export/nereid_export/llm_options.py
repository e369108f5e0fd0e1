"""What `nereid export llm` is asked for, and which of it cannot be had together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.llm_adapters import Adapter
from nereid_export.llm_quantize import Scheme

BLOCK_SIZES = (16, 32, 64, 128, 256)
STEP_ROWS = (1, 4, 8)
"""Answers that decode together, where nothing else is said."""
MOST_ROWS = 256
"""Of the calls that `auto` measures."""


class LlmPrecision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


class LlmEngine(StrEnum):
    """What computes the exported model; parameter `engine` of its config.pbtxt. `auto` is the fastest of the others here."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmExportOptions:
    """What `nereid export llm` was asked for.

    `eight_bit_share` is the share of the weights kept in 8 bits in an int4 engine; `draft` is the checkpoint of a smaller model
    with the same tokens, the draft model of speculative decoding; `context_length` bounds prompt and answer together, the
    checkpoint's own context where it is None; `step_rows` are the numbers of answers that the server will decode together, for
    `auto`; `adapters` are served beside the checkpoint, each by its name; `embeddings` keeps the last hidden states of tokens, of
    which the server gives the mean.
    """

    checkpoint: Path
    out: Path
    engine: LlmEngine = LlmEngine.ONNXRUNTIME
    precision: LlmPrecision = LlmPrecision.INT4
    block_size: int = 32
    symmetric: bool = True
    eight_bit_share: float = 0.15
    device: Device = Device.CPU
    name: str = ""
    sample_text: Path | None = None
    draft: Path | None = None
    context_length: int | None = None
    step_rows: tuple[int, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    embeddings: bool = False

    @property
    def expected_rows(self) -> tuple[int, ...]:
        """Of the calls that the server will make."""
        return self.step_rows or STEP_ROWS

    @property
    def scheme(self) -> Scheme | None:
        """How the matrices are rounded; None where they are not."""
        bits = {LlmPrecision.INT4: 4, LlmPrecision.INT8: 8}.get(self.precision)
        return None if bits is None else Scheme(bits=bits, block_size=self.block_size, symmetric=self.symmetric)

    @property
    def share_in_eight_bits(self) -> float:
        """Of the weights, how many stay in 8 bits where the others have fewer."""
        return self.eight_bit_share if self.precision is LlmPrecision.INT4 else 0.0

    @property
    def preparing(self) -> str:
        """What is said while the engine is made of its graph."""
        return "preparing the engine" if self.scheme is None else "measuring and quantising the matrices"

    def check(self) -> None:
        """Raise ExportError naming the option that is not allowed."""
        if self.block_size not in BLOCK_SIZES:
            allowed = ", ".join(map(str, BLOCK_SIZES))
            raise ExportError(f"--block-size: {self.block_size} is not allowed; it must be one of {allowed}")
        if not 0 <= self.eight_bit_share <= 1:
            raise ExportError(f"--eight-bit-share: {self.eight_bit_share} is not allowed; it must be 0 to 1")
        if self.engine is not LlmEngine.ONNXRUNTIME and self.device is not Device.CPU:
            raise ExportError(f"--device: {self.device} is not allowed with --engine {self.engine}; it must be cpu")
        if self.step_rows and self.engine is not LlmEngine.AUTO:
            raise ExportError(
                f"--step-rows is not allowed with --engine {self.engine}; it must be left out, or the engine be auto"
            )
        if max(self.step_rows, default=1) > MOST_ROWS:
            raise ExportError(f"--step-rows: {max(self.step_rows)} is not allowed; it must be 1 to {MOST_ROWS}")
        if self.engine is LlmEngine.OPENVINO and self.precision is LlmPrecision.FP16:
            raise ExportError("--precision: fp16 is not allowed with --engine openvino; it must be fp32, int8 or int4")
        if self.precision is LlmPrecision.FP16 and self.device is Device.CPU:
            raise ExportError("--precision: fp16 needs --device cuda; ONNX Runtime's processor kernels take fp32, int8 and int4")
