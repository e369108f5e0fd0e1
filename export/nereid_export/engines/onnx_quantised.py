"""An ONNX file to a quantised one, by ONNX Runtime's own tools; its QDQ form is what TensorRT reads, too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import external_data_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from nereid_export.engines.check import Inputs, Run
from nereid_export.engines.onnx_graph import SMALL_MODEL_BYTES, run_file
from nereid_export.sensitivity import dotted
from nereid_export.silence import quiet

BLOCK_SIZE = 32
"""Weights of a matrix's column that share a scale."""
_OPERATORS = ("Conv", "MatMul", "Gemm")


class _Calls(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, calls: Sequence[Inputs]) -> None:
        self._left = list(calls)

    def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dict(self._left.pop()) if self._left else None


def write_static(graph: Path, file: Path, calls: Sequence[Inputs], *, for_tensorrt: bool = False) -> None:
    """Q/DQ nodes around convolutions and products with weights.

    Weights are symmetric, a scale a channel; activations have one range a tensor, about zero and without an integer bias where
    TensorRT is to read them.
    """
    options = {"ActivationSymmetric": for_tensorrt, "WeightSymmetric": True, "QuantizeBias": not for_tensorrt}
    with quiet(printing=True):
        quantize_static(
            str(graph),
            str(file),
            _Calls(calls),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_quantize=_weighted(graph),
            op_types_to_quantize=list(_OPERATORS),
            use_external_data_format=_large(graph),
            extra_options=options,
        )


class QdqGraph:
    """A graph that `write_static` has made of `source`, whose layers can be put back (`sensitivity.QuantisedGraph`)."""

    def __init__(self, file: Path, source: Path) -> None:
        self._file, self._source = file, source
        self._model = onnx.load(str(file), load_external_data=False)
        before = onnx.load(str(source), load_external_data=False).graph.initializer
        self._weights = {f"{tensor.name}_quantized": tensor for tensor in before}
        nodes, constants = self._model.graph.node, {tensor.name for tensor in self._model.graph.initializer}
        codes = [node for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] not in constants]
        self._pairs = {node.output[0]: node.input[0] for node in codes}
        read = {name: node for node in reversed(nodes) for name in node.input}
        values = {node.output[0]: read[node.output[0]].output[0] for node in codes}
        self._places = {code: dotted(read[value].name if value in read else code) for code, value in values.items()}

    @property
    def rounded(self) -> list[str]:
        return list(self._places.values())

    def without(self, names: Collection[str]) -> Run:
        trial = self._file.with_name(f"trial-{self._file.name}")  # beside large weights, which it names
        try:
            self.write(names, trial)
            return run_file(trial)
        finally:
            for part in trial.parent.glob(f"{trial.name}*"):
                part.unlink()

    def write(self, names: Collection[str], file: Path) -> None:
        """The graph with these activations as they were, and the weights of layers that no other rounding feeds."""
        made = onnx.ModelProto()
        made.CopyFrom(self._model)
        gone = {code: tensor for code, tensor in self._pairs.items() if self._places[code] in names}
        outputs = {value.name for value in made.graph.output}
        renamed, nodes = {}, []
        for node in made.graph.node:
            if node.op_type == "QuantizeLinear" and node.output[0] in gone:
                continue
            if node.op_type == "DequantizeLinear" and node.input[0] in gone:
                if node.output[0] not in outputs:
                    renamed[node.output[0]] = gone[node.input[0]]
                    continue
                node = onnx.helper.make_node("Identity", [gone[node.input[0]]], [node.output[0]], node.name)
            nodes.append(node)
        for node in nodes:
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)
        restored = self._restore(nodes)
        read = {name for node in nodes for name in node.input}
        nodes = [node for node in nodes if node.op_type != "DequantizeLinear" or {*node.output} & (read | outputs)]
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in made.graph.initializer if tensor.name in read]
        del made.graph.node[:], made.graph.initializer[:]
        made.graph.node.extend(nodes)
        made.graph.initializer.extend([*kept, *self._loaded(restored, file)])
        onnx.save(made, str(file))

    def _restore(self, nodes: Sequence[onnx.NodeProto]) -> dict[str, onnx.TensorProto]:
        """Let layers whose input is not rounded read the weights of `source`; returns those by the names that they get."""
        made = {output: node for node in nodes for output in node.output}
        restored = {}
        for node in nodes:
            fed = made.get(node.input[0]) if node.input else None
            if node.op_type not in _OPERATORS or (fed is not None and fed.op_type == "DequantizeLinear"):
                continue
            for index, name in enumerate(node.input):
                code = made[name].input[0] if name in made and made[name].op_type == "DequantizeLinear" else ""
                if (tensor := self._weights.get(code)) is not None:
                    node.input[index] = f"{tensor.name}_float"
                    restored[node.input[index]] = tensor
        return restored

    def _loaded(self, tensors: Mapping[str, onnx.TensorProto], file: Path) -> Iterator[onnx.TensorProto]:
        """The tensors to be written with `file`; large ones are in a file of their own, as they were in the source's."""
        beside, end = file.with_name(f"{file.name}.float"), 0
        beside.unlink(missing_ok=True)
        for name, tensor in tensors.items():
            made = onnx.TensorProto()
            made.CopyFrom(tensor)
            made.name = name
            if external_data_helper.uses_external_data(tensor):
                external_data_helper.load_external_data_for_tensor(made, str(self._source.parent))
                with beside.open("ab") as stream:
                    stream.write(made.raw_data)
                external_data_helper.set_external_data(made, beside.name, end, len(made.raw_data))
                end += len(made.raw_data)
                made.ClearField("raw_data")
            yield made


def write_dynamic(graph: Path, file: Path) -> None:
    """Products with weights in int8, by the range of each call's activations."""
    with quiet(printing=True):
        quantize_dynamic(
            str(graph),
            str(file),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=_large(graph),
        )


def write_weights(graph: Path, file: Path, bits: int) -> None:
    """Matrices in 4 or 8 bits, a scale for each block of `BLOCK_SIZE`; convolutions stay as they are."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    with quiet(printing=True):
        how = DefaultWeightOnlyQuantConfig(block_size=BLOCK_SIZE, is_symmetric=True, bits=bits)
        made = MatMulNBitsQuantizer(onnx.load(str(graph)), algo_config=how)
        made.process()
        made.model.save_model_to_file(str(file), _large(graph))


def _weighted(graph: Path) -> list[str]:
    """Nodes with weights: products of activations with one another lose most by one range a tensor, and gain least."""
    nodes = onnx.load(str(graph), load_external_data=False).graph
    weights = {tensor.name for tensor in nodes.initializer}
    return [node.name for node in nodes.node if node.op_type in _OPERATORS and weights & set(node.input[1:])]


def _large(graph: Path) -> bool:
    return sum(part.stat().st_size for part in graph.parent.glob(f"{graph.name}*")) >= SMALL_MODEL_BYTES
