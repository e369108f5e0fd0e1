"""An ONNX graph of 8-bit products whose weights are stored in about 4 bits; ONNX Runtime unpacks them when it loads the file.

What unpacks is made of ordinary operators on constants (`functions`), which are folded before 8-bit products are looked for:
nothing of it is left in a run.
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
from nereid_export.w4a8.factors import Factors
from nereid_export.w4a8.functions import DOMAIN, add_functions
from nereid_export.w4a8.layers import QuantisedLayer
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

    def call(self, function: str, inputs: list[str], *outputs: str) -> str:
        """Of one in `functions`."""
        self.nodes.append(helper.make_node(function, inputs, list(outputs), domain=DOMAIN))
        return outputs[0]

    def layer(self, name: str, layer: QuantisedLayer) -> None:
        """The 8-bit weights, K x N, and their scales as tensors of these names: `QuantisedLayer.multiplied`, transposed."""
        parts = []
        if layer.codes is not None:
            parts.append(self._codes(name, layer.codes))
        if layer.factors is not None:
            parts.append(self._thin(name, layer.factors))
        stored = parts[0] if len(parts) == 1 else self.node("Add", parts, f"{name}/stored")
        self.call("eighths", [stored], name, scale_name(name))

    def _codes(self, name: str, codes: Codes) -> str:
        groups = codes.steps.shape[1]
        parts = by_bits(codes.bits)
        made = []
        for bits, channels in parts:
            planes = self._planes(f"{name}/{bits}", codes.codes[channels], bits, (len(channels), groups, GROUP))
            made.append(self.call("codes", planes, f"{name}/{bits}"))
        whole = made[0]
        if len(parts) > 1:
            joined = self.node("Concat", made, f"{name}/joined", axis=0)
            order = np.argsort(np.concatenate([channels for _, channels in parts]))
            places = self.node(
                "Cast", [self.constant(f"{name}/order", order.astype(np.int16))], f"{name}/places", to=TensorProto.INT32
            )
            whole = self.node("Gather", [joined, places], f"{name}/codes", axis=0)
        steps = self._planes(f"{name}/steps", codes.steps, STEP_BITS, (*codes.steps.shape, 1))
        rows = self.constant(f"{name}/rows", codes.rows[:, None, None])
        unit = self.constant(f"{name}/unit", np.asarray(codes.unit))
        return self.call("grouped", [whole, *steps, rows, unit, self._shape(codes.inputs)], f"{name}/matrix")

    def _planes(self, name: str, codes: NDArray[np.int8], bits: int, shape: tuple[int, ...]) -> list[str]:
        """What `codes` of `functions` is given, to make these of this shape."""
        worths = self.constant(f"w4a8/worths{bits}", (2.0 ** np.arange(bits)).astype(np.float32)[None])
        middle = self.constant(f"w4a8/middle{bits}", np.array(2.0 ** (bits - 1), np.float32))
        return [self.constant(f"{name}/planes", planes_of(codes, bits)), worths, middle, self._shape(*shape)]

    def _thin(self, name: str, factors: Factors) -> str:
        left, worths, middle, left_shape = self._planes(f"{name}/left", factors.left, factors.bits, factors.left.shape)
        right, *_, right_shape = self._planes(f"{name}/right", factors.right, factors.bits, factors.right.shape)
        components = self.constant(f"{name}/components", factors.worths)
        scale = self.constant(f"{name}/worth", np.asarray(factors.scale))
        return self.call("thin", [left, left_shape, right, right_shape, worths, middle, components, scale], f"{name}/correction")

    def table(self, name: str, table: Table, *, transposed: bool) -> None:
        """Of this name."""
        given = [self.constant(f"{name}/whole", table.whole), self.constant(f"{name}/rows", table.rows[:, None])]
        made = self.call("table", given, f"{name}/table" if transposed else name)
        if transposed:
            self.node("Transpose", [made], name, perm=[1, 0])

    def _shape(self, *sizes: int) -> str:
        return self.constant(f"w4a8/shape{'x'.join(map(str, sizes))}", np.array(sizes, np.int64))

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
        rows, places = np.unique(halved, axis=0, return_inverse=True)
        if halved.ndim == 1 or len(rows) == len(halved):
            self.node("Cast", [self.constant(f"{name}/half", halved)], name, to=TensorProto.FLOAT)
            return True
        own = self.node("Cast", [self.constant(f"{name}/half", rows)], f"{name}/rows", to=TensorProto.FLOAT)
        self.node("Gather", [own, self.constant(f"{name}/places", places.reshape(-1).astype(np.int32))], name, axis=0)
        return True


def scale_name(weights: str) -> str:
    """Of the constant that has the scales of these 8-bit weights."""
    return f"{weights}_scale"


def pack_weights(file: Path, layers: Mapping[str, QuantisedLayer], tables: Sequence[Table] = ()) -> None:
    """Store the 8-bit weights of a graph (int8 constants K x N, by name) as their layers have them, in place.

    Their scales (`scale_name`) are computed from them. Constants that have the very values of a table, or of its transpose, are
    stored as that has them; others in halves where halves have their values, and rows that are equal once. Raises ExportError for
    a graph that lacks a layer's.
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
    add_functions(model)
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
