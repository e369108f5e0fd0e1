"""Block-wise INT4 and INT8 of a language model's matrices, with their error measured on real activations.

Round to nearest in blocks along the input dimension, by ONNX Runtime's MatMulNBits quantizer (two 4-bit values to a byte).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from nereid_export.llm_graph import matrices
from nereid_export.silence import quiet

ACCURACY_LEVEL = 4
"""Activations are rounded to 8 bits a block, too, which is what makes the kernels quick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How to round: values of a block share a scale (and, if not symmetric, a zero point)."""

    bits: int
    block_size: int
    symmetric: bool


@dataclass(frozen=True, slots=True)
class MatrixError:
    """What rounding one matrix to 4 bits does: error over norm, of its weights and of its products with real activations."""

    matrix: str
    parameters: int
    weight_error: float
    output_error: float


def measure(model: Any, scheme: Scheme, feeds: dict[str, NDArray]) -> list[MatrixError]:
    """The error of every matrix, from one run of the unquantised `model` on `feeds`; worst output error first."""
    found = matrices(model)
    weights = {item.name: item for item in model.graph.initializer}
    inputs = _activations(model, [node.input[0] for node in found.values()], feeds)
    errors = []
    for name, node in found.items():
        weight = numpy_helper.to_array(weights[node.input[1]]).astype(np.float32)
        errors.append(error_of(name, weight, inputs[node.input[0]], scheme))
    return worst_first(errors)


def worst_first(errors: Sequence[MatrixError]) -> list[MatrixError]:
    """By what rounding does to the products."""
    return sorted(errors, key=lambda error: -error.output_error)


def error_of(matrix: str, weight: NDArray[np.float32], seen: NDArray, scheme: Scheme) -> MatrixError:
    """What rounding `weight` (inputs x outputs) does to it, and to its products with `seen` (inputs in the last axis)."""
    difference = round_trip(weight, scheme) - weight
    rows = seen.reshape(-1, weight.shape[0]).astype(np.float32)
    return MatrixError(matrix, weight.size, _ratio(difference, weight), _ratio(rows @ difference, rows @ weight))


def steps_of(
    weight: NDArray[np.float32], scheme: Scheme
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
    """The matrix (inputs x outputs) as whole steps, blocks x block size x outputs, with scale and zero point of every block.

    The formulas of the MatMulNBits quantizer; where the scheme is symmetric, there is no zero point and steps are signed.
    """
    rows, columns = weight.shape
    padded = np.zeros((-(-rows // scheme.block_size) * scheme.block_size, columns), np.float32)
    padded[:rows] = weight
    blocks = padded.reshape(-1, scheme.block_size, columns)
    if scheme.symmetric:
        extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
        scale = extreme / -(2 ** (scheme.bits - 1))
        safe = np.where(scale == 0, 1, scale)
        return np.clip(np.rint(blocks / safe), -(2 ** (scheme.bits - 1)), 2 ** (scheme.bits - 1) - 1), scale, None
    low, high = np.minimum(blocks.min(1, keepdims=True), 0), np.maximum(blocks.max(1, keepdims=True), 0)
    scale = (high - low) / (2**scheme.bits - 1)
    safe = np.where(scale == 0, 1, scale)
    zero = np.clip(np.rint(-low / safe), 0, 2**scheme.bits - 1)
    return np.clip(np.rint(blocks / safe) + zero, 0, 2**scheme.bits - 1), scale, zero


def round_trip(weight: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float32]:
    """What the matrix (inputs x outputs) is after rounding, in float32."""
    steps, scale, zero = steps_of(weight, scheme)
    made = (steps if zero is None else steps - zero) * scale
    return made.reshape(-1, weight.shape[1])[: len(weight)]


def most_sensitive(errors: Sequence[MatrixError], share: float) -> list[str]:
    """The matrices of largest output error that together hold at most `share` of the weights."""
    room = share * sum(error.parameters for error in errors)
    chosen = []
    for error in errors:
        if error.parameters <= room:
            chosen.append(error.matrix)
            room -= error.parameters
    return chosen


def quantize(model: Any, scheme: Scheme, eight_bit: Sequence[str]) -> Any:
    """A copy of `model` with its matrices in `scheme.bits`, those named in `eight_bit` in 8."""
    names = list(matrices(model))
    for bits, excluded in ((scheme.bits, set(eight_bit)), (8, set(names) - set(eight_bit))):
        if len(excluded) == len(names):
            continue
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=bits,
            block_size=scheme.block_size,
            is_symmetric=scheme.symmetric,
            accuracy_level=ACCURACY_LEVEL,
            nodes_to_exclude=sorted(excluded),
        )
        with quiet(printing=True):
            quantizer.process()
        model = quantizer.model.model
    _share_embedding(model, scheme)
    used = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _share_embedding(model: Any, scheme: Scheme) -> None:
    """Where the embedding is the head's own matrix (tied), read its rows from the quantised head: one copy, not two."""
    graph = model.graph
    nodes = {output: node for node in graph.node for output in node.output}
    heads = {node.name.split("/MatMul")[0]: node for node in graph.node if node.op_type == "MatMulNBits"}
    head = heads.get("/lm_head")
    for gather in [node for node in graph.node if node.op_type == "Gather"]:
        transpose = nodes.get(gather.input[0])
        if head is None or transpose is None or transpose.op_type != "Transpose":
            continue
        attributes = {item.name: item.i for item in head.attribute}
        vocabulary, width, bits = attributes["N"], attributes["K"], attributes["bits"]
        if width % scheme.block_size:
            continue
        packed = width * bits // 8
        shape, rows = f"{gather.name}/shape", f"{gather.name}/rows"
        graph.initializer.append(numpy_helper.from_array(np.array([vocabulary, packed], np.int64), shape))
        reshape = helper.make_node("Reshape", [head.input[1], shape], [rows], name=f"{gather.name}/Reshape")
        inputs = [rows, gather.input[1], head.input[2], *head.input[3:4]]
        if len(inputs) > 3 and inputs[3]:
            zero_shape, zeros = f"{gather.name}/zero_shape", f"{gather.name}/zeros"
            blocks = width // scheme.block_size * bits // 8
            graph.initializer.append(numpy_helper.from_array(np.array([vocabulary, blocks], np.int64), zero_shape))
            graph.node.insert(0, helper.make_node("Reshape", [inputs[3], zero_shape], [zeros], name=f"{gather.name}/ZeroReshape"))
            inputs[3] = zeros
        scale_shape, scales = f"{gather.name}/scale_shape", f"{gather.name}/scales"
        scale_dims = np.array([vocabulary, width // scheme.block_size], np.int64)
        graph.initializer.append(numpy_helper.from_array(scale_dims, scale_shape))
        graph.node.insert(0, helper.make_node("Reshape", [inputs[2], scale_shape], [scales], name=f"{gather.name}/ScaleReshape"))
        inputs[2] = scales
        shared = helper.make_node(
            "GatherBlockQuantized",
            [name for name in inputs if name],
            list(gather.output),
            name=f"{gather.name}/GatherBlockQuantized",
            domain="com.microsoft",
            bits=bits,
            block_size=scheme.block_size,
            gather_axis=0,
            quantize_axis=1,
        )
        place = list(graph.node).index(gather)
        graph.node.remove(gather)
        graph.node.insert(place, shared)
        graph.node.insert(place, reshape)
        graph.node.remove(transpose)


def _activations(model: Any, names: list[str], feeds: dict[str, NDArray]) -> dict[str, NDArray]:
    """Run the model once with those inner values as outputs."""
    import tempfile

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {output.name for output in probe.graph.output}
    for name in dict.fromkeys(names):
        if name not in known:
            probe.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe.onnx"
        onnx.save_model(probe, str(file), save_as_external_data=True, location="probe.data", size_threshold=1024)
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        wanted = list(dict.fromkeys(names))
        return dict(zip(wanted, session.run(wanted, feeds), strict=True))


def _ratio(difference: NDArray, reference: NDArray) -> float:
    return float(np.linalg.norm(difference) / (np.linalg.norm(reference) or 1.0))
