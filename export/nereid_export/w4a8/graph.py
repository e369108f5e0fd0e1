"""An ONNX graph of 8-bit products whose weights are stored in about 4 bits; ONNX Runtime unpacks them when it loads the file.

What unpacks is made of ordinary operators on constants, which are folded before 8-bit products are looked for: nothing of it is
left in a run.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nereid_export.errors import ExportError
from nereid_export.w4a8.codes import GROUP, by_bits, planes_of
from nereid_export.w4a8.layers import Correction, QuantisedLayer

PRODUCT = "MatMulIntegerToFloat"
"""The operator that ONNX Runtime makes of a product between Q/DQ nodes."""
_HALVED = 64
"""Numbers that a float32 constant has at least to be stored in halves, where they are exact."""


class _Unpacking:
    """Nodes and constants that make weights of what is stored."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def constant(self, name: str, value: NDArray) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def layer(self, name: str, layer: QuantisedLayer) -> None:
        """The 8-bit weights, K x N, as the tensor of this name: `QuantisedLayer.multiplied`, transposed."""
        stored = self._codes(name, layer)
        if layer.correction is not None:
            stored = self.node("Add", [stored, self._correction(name, layer.correction)], f"{name}/stored")
        scales = self.constant(f"{name}/scales", layer.scales[:, None])
        rounded = self.node("Round", [self.node("Div", [stored, scales], f"{name}/eighths")], f"{name}/rounded")
        bounds = [self.constant("w4a8/low", np.array(-127, np.float32)), self.constant("w4a8/high", np.array(127, np.float32))]
        kept = self.node("Clip", [rounded, *bounds], f"{name}/kept")
        whole = self.node("Cast", [kept], f"{name}/whole", to=TensorProto.INT8)
        self.node("Transpose", [whole], name, perm=[1, 0])

    def _codes(self, name: str, layer: QuantisedLayer) -> str:
        codes, outputs = layer.codes, len(layer.codes.bits)
        parts = by_bits(codes.bits)
        made = [self._plane(f"{name}/{bits}", codes.codes[channels], bits) for bits, channels in parts]
        whole = made[0]
        if len(parts) > 1:
            joined = self.node("Concat", made, f"{name}/joined", axis=0)
            order = np.argsort(np.concatenate([channels for _, channels in parts]))
            places = self.constant(f"{name}/order", order.astype(np.int32))
            whole = self.node("Gather", [joined, places], f"{name}/codes", axis=0)
        scales = self.halves(f"{name}/group_scales", codes.scales[..., None])
        scaled = self.node("Mul", [whole, scales], f"{name}/scaled")
        shape = self.constant(f"{name}/shape", np.array([outputs, codes.codes.shape[1]], np.int64))
        matrix = self.node("Reshape", [scaled, shape], f"{name}/filled")
        if codes.inputs == codes.codes.shape[1]:
            return matrix
        ends = [
            self.constant(f"{name}/{what}", np.array([value], np.int64)) for what, value in (("from", 0), ("to", codes.inputs))
        ]
        return self.node("Slice", [matrix, *ends, self.constant("w4a8/columns", np.array([1], np.int64))], f"{name}/matrix")

    def _plane(self, name: str, codes: NDArray[np.int8], bits: int) -> str:
        """Codes as float32, N x groups x GROUP."""
        planes = self.constant(f"{name}/planes", planes_of(codes, bits))
        last = self.constant("w4a8/last", np.array([-1], np.int64))
        shifts = self.constant("w4a8/shifts", np.arange(7, -1, -1, dtype=np.uint8))
        one = self.constant("w4a8/one", np.array(1, np.uint8))
        spread = self.node("Unsqueeze", [planes, last], f"{name}/spread")
        shifted = self.node("BitShift", [spread, shifts], f"{name}/shifted", direction="RIGHT")
        single = self.node("BitwiseAnd", [shifted, one], f"{name}/bits")
        numbers = self.node("Cast", [single], f"{name}/numbers", to=TensorProto.FLOAT)
        shape = self.constant(f"{name}/shape", np.array([bits, len(codes), codes.shape[1] // GROUP, GROUP], np.int64))
        grouped = self.node("Reshape", [numbers, shape], f"{name}/grouped")
        worth = self.constant(f"w4a8/worth{bits}", (2.0 ** np.arange(bits)).astype(np.float32).reshape(bits, 1, 1, 1))
        first = self.constant("w4a8/first", np.array([0], np.int64))
        weighed = self.node("Mul", [grouped, worth], f"{name}/weighed")
        raised = self.node("ReduceSum", [weighed, first], f"{name}/raised", keepdims=0)
        return self.node(
            "Sub", [raised, self.constant(f"w4a8/middle{bits}", np.array(2.0 ** (bits - 1), np.float32))], f"{name}/codes"
        )

    def _correction(self, name: str, correction: Correction) -> str:
        factors = [
            self.node("Cast", [self.constant(f"{name}/{what}", value)], f"{name}/{what}_numbers", to=TensorProto.FLOAT)
            for what, value in (("left", correction.left), ("right", correction.right))
        ]
        product = self.node("MatMul", factors, f"{name}/product")
        tall = self.node("Mul", [product, self.halves(f"{name}/rows", correction.rows[:, None])], f"{name}/tall")
        return self.node("Mul", [tall, self.halves(f"{name}/columns", correction.columns)], f"{name}/correction")

    def halves(self, name: str, value: NDArray[np.float16], output: str | None = None) -> str:
        return self.node("Cast", [self.constant(name, value)], output or f"{name}_numbers", to=TensorProto.FLOAT)


def pack_weights(file: Path, layers: Mapping[str, QuantisedLayer]) -> None:
    """Store the 8-bit weights of a graph (int8 constants K x N, by name) as their layers have them, in place.

    Other constants are stored in halves where halves have their very values. Raises ExportError for a graph that lacks one.
    """
    model = onnx.load(str(file))
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    made, packed = _Unpacking(), set(layers)
    for name, layer in layers.items():
        if name not in found or not np.array_equal(numpy_helper.to_array(found[name]), layer.multiplied.T):
            raise ExportError(f"{file.name}: the graph has lost the 8-bit weights {name}")
        made.layer(name, layer)
    for name, tensor in found.items():
        if name in packed:
            continue
        value = numpy_helper.to_array(tensor)
        if (
            value.dtype == np.float32
            and value.size >= _HALVED
            and np.array_equal(value.astype(np.float16).astype(np.float32), value)
        ):
            made.halves(f"{name}/half", value.astype(np.float16), name)
            packed.add(name)
    kept = [tensor for name, tensor in found.items() if name not in packed]
    nodes = [*made.nodes, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *made.constants.values()])
    onnx.save(model, str(file))


def executed(file: Path) -> Counter[str]:
    """How often a run executes each operator: those of the graph that ONNX Runtime makes of a file on the processor."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
