"""An ONNX graph of 8-bit products whose weights are stored in about 4 bits; ONNX Runtime unpacks them when it loads the file.

What unpacks is made of ordinary operators on constants, which are folded before 8-bit products are looked for: nothing of it is
left in a run.
"""

from __future__ import annotations

import string
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nereid_export.errors import ExportError
from nereid_export.w4a8.codes import GROUP, STEP_BITS, Codes, by_bits, planes_of
from nereid_export.w4a8.layers import FACTOR_BITS, SMALLEST_SCALE, Correction, QuantisedLayer
from nereid_export.w4a8.tables import Table

PRODUCT = "MatMulIntegerToFloat"
"""The operator that ONNX Runtime makes of a product between Q/DQ nodes."""
_HALVED = 64
"""Numbers that a float32 constant has at least to be stored in halves, where they are exact."""
_LETTERS = string.ascii_letters + string.digits


class _Unpacking:
    """Nodes and constants that make weights of what is stored."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def constant(self, name: str, value: NDArray) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def layer(self, name: str, layer: QuantisedLayer) -> None:
        """The 8-bit weights, K x N, and their scales as tensors of these names: `QuantisedLayer.multiplied`, transposed."""
        stored = self._codes(name, layer.codes)
        if layer.correction is not None:
            stored = self.node("Add", [stored, self._correction(name, layer.correction)], f"{name}/stored")
        across = self.constant("w4a8/across", np.array([1], np.int64))
        largest = self.node("ReduceMax", [self.node("Abs", [stored], f"{name}/sizes"), across], f"{name}/largest")
        most = self.constant("w4a8/high", np.array(127, np.float32))
        smallest = self.constant("w4a8/smallest", np.asarray(SMALLEST_SCALE))
        scales = self.node("Max", [self.node("Div", [largest, most], f"{name}/share"), smallest], f"{name}/scales")
        self.node("Squeeze", [scales, across], scale_name(name))
        rounded = self.node("Round", [self.node("Div", [stored, scales], f"{name}/eighths")], f"{name}/rounded")
        low = self.constant("w4a8/low", np.array(-127, np.float32))
        kept = self.node("Clip", [rounded, low, most], f"{name}/kept")
        whole = self.node("Cast", [kept], f"{name}/whole", to=TensorProto.INT8)
        self.node("Transpose", [whole], name, perm=[1, 0])

    def _codes(self, name: str, codes: Codes) -> str:
        groups = codes.steps.shape[1]
        parts = by_bits(codes.bits)
        made = [
            self._plane(f"{name}/{bits}", codes.codes[channels], bits, (len(channels), groups, GROUP)) for bits, channels in parts
        ]
        whole = made[0]
        if len(parts) > 1:
            joined = self.node("Concat", made, f"{name}/joined", axis=0)
            order = np.argsort(np.concatenate([channels for _, channels in parts]))
            places = self.constant(f"{name}/order", order.astype(np.int32))
            whole = self.node("Gather", [joined, places], f"{name}/codes", axis=0)
        steps = self._plane(f"{name}/steps", codes.steps, STEP_BITS, (len(codes.bits), groups, 1))
        scales = self.node("Mul", [steps, self.halves(f"{name}/rows", codes.rows[:, None, None])], f"{name}/group_scales")
        scaled = self.node("Mul", [whole, scales], f"{name}/scaled")
        matrix = self.node("Reshape", [scaled, self._shape(len(codes.bits), groups * GROUP)], f"{name}/filled")
        return matrix if codes.inputs == groups * GROUP else self._cut(matrix, 1, codes.inputs, f"{name}/matrix")

    def _plane(self, name: str, codes: NDArray[np.int8], bits: int, shape: tuple[int, ...]) -> str:
        """Codes as float32 of this shape."""
        planes = self.constant(f"{name}/planes", planes_of(codes, bits))
        last = self.constant("w4a8/last", np.array([-1], np.int64))
        shifts = self.constant("w4a8/shifts", np.arange(7, -1, -1, dtype=np.uint8))
        one = self.constant("w4a8/one", np.array(1, np.uint8))
        spread = self.node("Unsqueeze", [planes, last], f"{name}/spread")
        shifted = self.node("BitShift", [spread, shifts], f"{name}/shifted", direction="RIGHT")
        single = self.node("BitwiseAnd", [shifted, one], f"{name}/bits")
        numbers = self.node("Cast", [single], f"{name}/numbers", to=TensorProto.FLOAT)
        row = self.node("Reshape", [numbers, self._shape(bits, -1)], f"{name}/row")
        if codes.size % 8:
            row = self._cut(row, 1, codes.size, f"{name}/whole_row")
        worth = self.constant(f"w4a8/worth{bits}", (2.0 ** np.arange(bits)).astype(np.float32)[:, None])
        first = self.constant("w4a8/first", np.array([0], np.int64))
        weighed = self.node("Mul", [row, worth], f"{name}/weighed")
        raised = self.node("ReduceSum", [weighed, first], f"{name}/raised", keepdims=0)
        middle = self.constant(f"w4a8/middle{bits}", np.array(2.0 ** (bits - 1), np.float32))
        signed = self.node("Sub", [raised, middle], f"{name}/signed")
        return self.node("Reshape", [signed, self._shape(*shape)], f"{name}/codes")

    def _correction(self, name: str, correction: Correction) -> str:
        factors = [
            self._plane(f"{name}/{what}", value, FACTOR_BITS, value.shape)
            for what, value in (("left", correction.left), ("right", correction.right))
        ]
        product = self.node("MatMul", factors, f"{name}/product")
        return self.node("Mul", [product, self.constant(f"{name}/worth", np.asarray(correction.scale))], f"{name}/correction")

    def table(self, name: str, table: Table, *, transposed: bool) -> None:
        """Of this name."""
        scales = self.halves(f"{name}/rows", table.rows[:, None])
        numbers = self.node("Cast", [self.constant(f"{name}/whole", table.whole)], f"{name}/numbers", to=TensorProto.FLOAT)
        made = self.node("Mul", [numbers, scales], f"{name}/table" if transposed else name)
        if transposed:
            self.node("Transpose", [made], name, perm=[1, 0])

    def _shape(self, *sizes: int) -> str:
        return self.constant(f"w4a8/shape{'x'.join(map(str, sizes))}", np.array(sizes, np.int64))

    def _cut(self, value: str, axis: int, size: int, output: str) -> str:
        """The first `size` along an axis."""
        bounds = [self.constant(f"w4a8/at{its}", np.array([its], np.int64)) for its in (0, size, axis)]
        return self.node("Slice", [value, *bounds], output)

    def packed(self, name: str, value: NDArray, tables: Sequence[Table]) -> bool:
        """Whether a constant that is no layer's can be stored in fewer bits, as it is then."""
        if value.dtype != np.float32 or value.size < _HALVED:
            return False
        for table in tables:
            for transposed in (False, True):
                matrix = table.matrix().T if transposed else table.matrix()
                if np.array_equal(matrix, value):
                    self.table(name, table, transposed=transposed)
                    return True
        halved = value.astype(np.float16)
        if not np.array_equal(halved.astype(np.float32), value):
            return False
        self.halves(f"{name}/half", halved, name)
        return True

    def halves(self, name: str, value: NDArray[np.float16], output: str | None = None) -> str:
        return self.node("Cast", [self.constant(name, value)], output or f"{name}_numbers", to=TensorProto.FLOAT)


def scale_name(weights: str) -> str:
    """Of the constant that has the scales of these 8-bit weights."""
    return f"{weights}_scale"


def pack_weights(file: Path, layers: Mapping[str, QuantisedLayer], tables: Sequence[Table] = ()) -> None:
    """Store the 8-bit weights of a graph (int8 constants K x N, by name) as their layers have them, in place.

    Their scales (`scale_name`) are computed from them. Constants that have the very values of a table, or of its transpose, are
    stored as that has them; others in halves where halves have their values. Raises ExportError for a graph that lacks a layer's.
    """
    model = onnx.load(str(file))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = _Unpacking()
    for name, layer in layers.items():
        for wanted, value in ((name, layer.multiplied.T), (scale_name(name), layer.scales)):
            if wanted not in found or not np.array_equal(found.pop(wanted), value):
                raise ExportError(f"{file.name}: the graph has lost the 8-bit weights {name}")
        made.layer(name, layer)
    kept = [name for name, value in found.items() if not made.packed(name, value, tables)]
    originals = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [*made.nodes, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*(originals[name] for name in kept), *made.constants.values()])
    shorten(model)
    onnx.save(model, str(file))


def shorten(model: ModelProto) -> None:
    """Names of a few letters for all but inputs and outputs, and equal constants once: names were a tenth of a file."""
    graph = model.graph
    named = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": "", **{name: name for name in named}}
    constants: dict[bytes, str] = {}
    tensors: list[TensorProto] = []
    nodes: list[NodeProto] = []

    def told(name: str) -> str:
        if name not in short:
            made = _letters(len(short))
            while made in named:
                made += "_"
            short[name] = made
        return short[name]

    def constant(tensor: TensorProto, name: str) -> None:
        tensor.ClearField("name")
        content = tensor.SerializeToString(deterministic=True)
        if content not in constants:
            constants[content] = tensor.name = told(name)
            tensors.append(tensor)
        short[name] = constants[content]

    for tensor in graph.initializer:
        constant(tensor, tensor.name)
    for node in graph.node:
        values = [its.t for its in node.attribute if its.name == "value"] if node.op_type == "Constant" else []
        if values and node.output[0] not in named:
            constant(values[0], node.output[0])
            continue
        nodes.append(node)
        node.ClearField("name")
        node.ClearField("doc_string")
        node.input[:] = [told(name) for name in node.input]
        node.output[:] = [told(name) for name in node.output]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)


def _letters(number: int) -> str:
    made = ""
    while number:
        number, rest = divmod(number, len(_LETTERS))
        made += _LETTERS[rest]
    return made


def executed(file: Path) -> Counter[str]:
    """How often a run executes each operator: those of the graph that ONNX Runtime makes of a file on the processor."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
