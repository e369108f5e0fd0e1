"""A matrix in 8 or 4 bits as OpenVINO stores it: whole numbers, and for each block a scale and perhaps a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import op
from openvino import opset13 as ops

from nereid_export.llm_quantize import Scheme, steps_of


@dataclass(slots=True)
class Matrix:
    """Outputs x blocks x block size of whole numbers, with their scales; one copy, however often it is used."""

    values: Any
    scale: Any
    zero: Any | None
    shape: tuple[int, int]

    @classmethod
    def of(cls, weight: NDArray[np.float32], scheme: Scheme) -> Matrix:
        """Round `weight` (outputs x inputs), whose inputs are whole blocks, by the formulas of `round_trip`."""
        outputs, inputs = weight.shape
        steps, scale, zero = steps_of(np.ascontiguousarray(weight.T), scheme)  # blocks x block size x outputs
        blocks = (outputs, inputs // scheme.block_size, scheme.block_size)
        values = _whole_numbers(steps.transpose(2, 0, 1).reshape(blocks), scheme)
        scales = np.ascontiguousarray(scale.transpose(2, 0, 1), np.float32)
        zeros = None if zero is None else _whole_numbers(zero.transpose(2, 0, 1), scheme)
        return cls(values, ops.constant(scales), zeros, (outputs, inputs))

    def whole(self) -> Any:
        """All of it in float32: OpenVINO multiplies with the whole numbers themselves."""
        made = ops.convert(self.values, np.float32)
        if self.zero is not None:
            made = ops.subtract(made, ops.convert(self.zero, np.float32))
        return ops.reshape(ops.multiply(made, self.scale), ops.constant(np.asarray(self.shape, np.int64)), False)

    def rows(self, ids: Any) -> Any:
        """Some rows of it, as an embedding: OpenVINO expands those alone."""
        return ops.gather(self.whole(), ids, ops.constant(np.int64(0)))


def _whole_numbers(steps: NDArray[np.float32], scheme: Scheme) -> Any:
    """A constant of signed numbers where the scheme is symmetric; of two 4-bit values in a byte the first is the low one."""
    whole = np.ascontiguousarray(steps).astype(np.int8 if scheme.symmetric else np.uint8)
    if scheme.bits == 8:
        return ops.constant(whole)
    halves = whole.view(np.uint8).reshape(-1) & 0xF
    if halves.size % 2:
        halves = np.append(halves, np.uint8(0))
    packed = halves[0::2] | halves[1::2] << 4
    kind = ov.Type.i4 if scheme.symmetric else ov.Type.u4
    return op.Constant(ov.Tensor(packed, ov.Shape(whole.shape), kind), shared_memory=False)
