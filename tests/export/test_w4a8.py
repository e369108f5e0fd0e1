"""Matrices of about 4 bits multiplied in 8: storage, rounding, smoothing, bits a channel, correction, the graph that unpacks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
import onnx
from onnx import TensorProto, helper, numpy_helper

from nereid_export.engines.onnx_graph import run_file
from nereid_export.errors import ExportError
from nereid_export.w4a8.bytes import bytes_of
from nereid_export.w4a8.codes import GROUP, planes_of, round_carrying, round_to_nearest
from nereid_export.w4a8.factors import best_error, factored
from nereid_export.w4a8.graph import PRODUCT, executed, pack_weights, shorten
from nereid_export.w4a8.inputs import Rounding, Statistics
from nereid_export.w4a8.layers import (
    ALPHAS,
    FACTOR_BITS,
    FEWEST,
    MOST,
    RANK,
    SmoothedLayer,
    best_alpha,
    bits_each,
    in_codes,
    in_fewest_bytes,
    kurtosis,
    mixed_bits,
    output_error,
    quantise,
    smoothing,
)
from nereid_export.w4a8.products import ProductInEight
from nereid_export.w4a8.tables import Table

pytestmark = pytest.mark.torch
RANGES = 4


def inputs_like(width: int, *, outlying: float = 1.0, count: int = 256) -> Statistics:
    """Of inputs that go together, larger in later ranges; a few channels are `outlying` times as large."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, width)) @ (rng.standard_normal((width, width)) / width**0.5)
    rows[:, ::17] *= outlying
    places = np.arange(count) % RANGES
    rows = (rows * (1 + places[:, None])).astype(np.float32)
    by_range = [rows[places == place].astype(np.float64) for place in range(RANGES)]
    return Statistics(
        low=np.stack([its.min(0) for its in by_range]),
        high=np.stack([its.max(0) for its in by_range]),
        gram=rows.T.astype(np.float64) @ rows,
        rows=rows,
        places=places,
    )


def matrix(outputs: int, inputs: int) -> NDArray[np.float32]:
    return (0.05 * np.random.default_rng(1).standard_t(5, (outputs, inputs))).astype(np.float32)


def error_of(made: NDArray, wanted: NDArray, statistics: Statistics) -> float:
    off = (made - wanted) @ statistics.rows.T
    return float(np.linalg.norm(off) / np.linalg.norm(wanted @ statistics.rows.T))


# --- storage ---


def codes_of(planes: NDArray, shape: tuple[int, ...]) -> NDArray:
    """The way back."""
    raised = sum(np.unpackbits(plane, count=math.prod(shape)).astype(np.int16) << bit for bit, plane in enumerate(planes))
    return (np.asarray(raised) - 2 ** (len(planes) - 1)).astype(np.int8).reshape(shape)


@pytest.mark.parametrize("bits", [1, 3, 4, 5, 8])
def test_codes_come_back_from_their_planes_exactly(bits: int) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (7, 3 * GROUP)).astype(np.int8)
    planes = planes_of(codes, bits)
    assert (planes.dtype, planes.shape) == (np.uint8, (bits, 7 * 3 * GROUP // 8))
    assert np.array_equal(codes_of(planes, codes.shape), codes)
    assert np.array_equal(codes_of(planes_of(codes[:, :3], bits), (7, 3)), codes[:, :3])


def test_codes_of_more_bits_are_not_stored() -> None:
    with pytest.raises(ValueError, match="codes from -4 to 4 are not of 3 bits"):
        planes_of(np.array([[-4, 4] * 4], np.int8), 3)


# --- rounding ---


def test_a_group_uses_all_its_codes_and_errors_are_within_a_step() -> None:
    weights = matrix(16, 2 * GROUP).astype(np.float64)
    made = round_to_nearest(weights, np.full(16, 4), np.ones(2 * GROUP))
    assert made.codes.min() == -8
    assert made.codes.max() <= 7
    scales = np.repeat(np.abs(made.scales.astype(np.float64)), GROUP, 1)
    inside = np.abs(made.codes) < 7
    assert (np.abs(made.matrix() - weights)[inside] <= 0.51 * scales[inside]).all()
    zeros = round_to_nearest(np.zeros((2, GROUP)), np.full(2, 4), np.ones(GROUP))
    assert not zeros.matrix().any()


def test_carrying_errors_on_takes_them_out_of_the_outputs() -> None:
    """Also where the last group is not full."""
    for width in (96, 84):
        statistics, weights, bits = inputs_like(width), matrix(48, width).astype(np.float64), np.full(48, 4)
        carried = error_of(round_carrying(weights, bits, statistics.gram).matrix(), weights, statistics)
        alone = error_of(round_to_nearest(weights, bits, np.diag(statistics.gram)).matrix(), weights, statistics)
        assert carried < 0.8 * alone


def test_inputs_are_rounded_by_the_range_of_their_timesteps() -> None:
    statistics = inputs_like(64)
    rounding = Rounding.of(statistics)
    assert rounding.gains.max() == 1
    assert (np.diff(rounding.gains) > 0).all()
    made = rounding.rounded(statistics.rows, statistics.places)
    steps = rounding.scale * rounding.gains[statistics.places]
    assert (np.abs(made - statistics.rows) <= 0.51 * steps[:, None]).all()
    last = replace(statistics, low=statistics.low[-1:], high=statistics.high[-1:])
    one = Rounding.of(last)
    coarse = one.rounded(statistics.rows, np.zeros_like(statistics.places))
    assert np.abs(made - statistics.rows).mean() < 0.8 * np.abs(coarse - statistics.rows).mean()


def test_inputs_that_are_nothing_have_a_rounding() -> None:
    nothing = np.zeros((2, 32))
    rows, places = np.zeros((4, 32), np.float32), np.zeros(4, int)
    made = Rounding.of(Statistics(low=nothing, high=nothing, gram=np.zeros((32, 32)), rows=rows, places=places))
    assert not made.rounded(rows, places).any()


# --- what a layer's search finds ---


def test_the_search_for_alpha_lessens_the_error() -> None:
    statistics, weights = inputs_like(96, outlying=40.0), matrix(64, 96).astype(np.float64)
    alpha, factor = best_alpha(weights, statistics)
    assert alpha in ALPHAS
    wide = factor.astype(np.float64)
    smoothed = output_error(weights / wide, statistics.times(wide))
    assert smoothed < 0.8 * output_error(weights, statistics)
    for other in ALPHAS:
        wide = smoothing(weights, statistics, other).astype(np.float64)
        assert smoothed <= output_error(weights / wide, statistics.times(wide))


def test_smoothing_changes_nothing_but_rounding() -> None:
    statistics, weights = inputs_like(96, outlying=40.0), matrix(64, 96)
    factor = smoothing(weights.astype(np.float64), statistics, 0.5)
    assert np.allclose((statistics.rows * factor) @ (weights / factor).T, statistics.rows @ weights.T, rtol=1e-4, atol=1e-3)
    assert np.array_equal(factor, factor.astype(np.float16))


def test_mixed_bits_keep_their_average_and_go_by_kurtosis() -> None:
    statistics, weights = inputs_like(96), matrix(64, 96).astype(np.float64)
    weights[::8, :3] *= 30  # channels with outliers
    bits, share = mixed_bits(weights, statistics.gram)
    assert share > 0
    assert bits.mean() == 4
    assert set(bits) == {3, 4, 5}
    assert kurtosis(weights)[bits == 5].min() >= kurtosis(weights)[bits == 4].max()
    assert kurtosis(weights)[bits == 3].max() <= kurtosis(weights)[bits == 4].min()

    def error(own: NDArray[np.int64]) -> float:
        return error_of(round_to_nearest(weights, own, np.diag(statistics.gram)).matrix(), weights, statistics)

    assert error(bits) < error(np.full(64, 4))


def test_the_correction_lessens_the_error_with_its_rank() -> None:
    statistics, weights = inputs_like(96), matrix(64, 96).astype(np.float64)
    rounded = round_to_nearest(weights, np.full(64, 4), np.diag(statistics.gram)).matrix()
    errors, lost = [error_of(rounded, weights, statistics)], weights - rounded
    for rank in (4, 16):
        errors.append(error_of(rounded + next(factored(lost, statistics.gram, FACTOR_BITS, rank)).matrix(), weights, statistics))
    assert errors[2] < 0.8 * errors[1] < 0.8 * 0.95 * errors[0]


def test_more_components_make_good_what_rounding_has_taken_from_the_first() -> None:
    """Beyond the rank of the matrix itself, where the best matrix has no error and its factors have that of their bits."""
    statistics = inputs_like(96)
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((64, 8)) @ rng.standard_normal((8, 96))
    made = list(itertools.islice(factored(weights, statistics.gram, 6, 4), 4))
    assert [len(its.worths) for its in made] == [4, 8, 12, 16]
    first, whole, _, last = (error_of(its.matrix(), weights, statistics) for its in made)
    assert best_error(weights, statistics.gram, 8) < 1e-6 < best_error(weights, statistics.gram, 4) <= first
    assert last < 0.5 * whole < 0.5 * 0.1 * first


def test_weights_of_low_rank_are_stored_as_factors_alone() -> None:
    """Others are not; either way what is stored is what an engine multiplies."""
    statistics, rng = inputs_like(96), np.random.default_rng(4)
    low = (0.05 * rng.standard_normal((192, 8)) @ rng.standard_normal((8, 96))).astype(np.float32)
    for weights, alone in ((low, True), (matrix(192, 96), False)):
        layer = SmoothedLayer.of(weights, statistics)
        coded = in_codes(layer)
        made = in_fewest_bytes(layer, coded)
        assert (made.codes is None) is alone
        assert (made.stored_bytes < coded.stored_bytes) is alone
        assert made.error <= coded.error
        assert np.abs(made.multiplied).max() == 127


def test_layers_have_the_more_bits_the_more_their_rounding_costs() -> None:
    """A bit more is a quarter of the cost: layers of sixteen times the cost for each weight have two more."""
    losses, sizes = {"a": 16.0, "b": 1.0, "c": 2.0, "d": 1.0}, {"a": 100, "b": 100, "c": 200, "d": 100}
    assert bits_each(losses, sizes, 4.4) == {"a": 6, "b": 4, "c": 4, "d": 4}
    for mean in (3.2, 3.7, 4.5):
        made = bits_each(losses, sizes, mean)
        assert sum(made[name] * sizes[name] for name in made) <= mean * sum(sizes.values())
    assert set(bits_each(losses, sizes, 1).values()) == {FEWEST}
    assert set(bits_each(losses, sizes, 9).values()) == {MOST}


def test_a_layer_is_better_than_plain_rounding_and_its_8_bits_are_what_is_stored() -> None:
    statistics, weights = inputs_like(96, outlying=10.0), matrix(64, 96)
    made, without = quantise(weights, statistics), quantise(weights, statistics, rank=0)
    assert made.error < without.error < made.plain_error
    assert made.codes is not None
    assert made.codes.bits.mean() == 4
    assert np.abs(made.multiplied).max() == 127
    off = np.abs(made.multiplied * made.scales[:, None] - made.stored)
    assert (off <= 0.51 * made.scales[:, None]).all()


# --- the graph ---


def graph_file(file: Path, weights: NDArray[np.int8], layer_scales: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    """A product of 8-bit numbers as PyTorch's exporter writes it."""
    constants = {
        "weight": weights,
        "scale": np.array(0.01, np.float32),
        "zero": np.array(120, np.uint8),
        "weight_scale": layer_scales,
        "weight_zero": np.zeros(len(layer_scales), np.int8),
        "bias": bias,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["p"]),
        helper.make_node("Add", ["p", "bias"], ["y"]),
    ]
    sizes = (("x", weights.shape[0]), ("y", weights.shape[1]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "rows", size]) for name, size in sizes]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(file))


@pytest.mark.parametrize("width", [96, 84])
def test_a_packed_graph_is_small_computes_the_same_bits_and_executes_in_8_bits(width: int, tmp_path: Path) -> None:
    layer, file = quantise(matrix(128, width), inputs_like(width)), tmp_path / "model.onnx"
    bias = np.arange(128, dtype=np.float32)
    graph_file(file, layer.multiplied.T.copy(), layer.scales, bias)
    given = {"x": np.random.default_rng(3).standard_normal((1, 5, width)).astype(np.float32)}
    before, size = run_file(file)(given, ["y"])["y"], file.stat().st_size
    assert np.abs(before).max() > 100
    pack_weights(file, {"weight": layer})
    onnx.checker.check_model(str(file), full_check=True)
    assert run_file(file)(given, ["y"])["y"].tobytes() == before.tobytes()
    assert executed(file) == {"QuantizeLinear": 1, PRODUCT: 1, "Add": 1}
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(str(file)).graph.initializer]
    assert any(np.array_equal(its, bias.astype(np.float16)) for its in stored if its.dtype == np.float16)
    planes = (128 * 96 + 128 * 3 + RANK * (128 + width)) // 2  # codes, groups' scales, correction
    others = 128 + 2 * 128  # channels' steps, bias
    assert layer.stored_bytes == planes + 128 + 4 + 2 * RANK
    assert planes + others <= sum(its.nbytes for its in stored) < planes + others + 400
    assert file.stat().st_size < size


def test_factors_alone_are_unpacked_to_the_same_bits(tmp_path: Path) -> None:
    statistics, rng = inputs_like(96), np.random.default_rng(4)
    weights = (0.05 * rng.standard_normal((192, 8)) @ rng.standard_normal((8, 96))).astype(np.float32)
    layer, file = quantise(weights, statistics), tmp_path / "model.onnx"
    assert layer.codes is None
    graph_file(file, layer.multiplied.T.copy(), layer.scales, np.zeros(192, np.float32))
    given = {"x": rng.standard_normal((1, 5, 96)).astype(np.float32)}
    before = run_file(file)(given, ["y"])["y"]
    pack_weights(file, {"weight": layer})
    assert run_file(file)(given, ["y"])["y"].tobytes() == before.tobytes()
    assert executed(file)[PRODUCT] == 1


def test_what_unpacks_is_in_a_file_once_and_equal_rows_of_halves_are(tmp_path: Path) -> None:
    file, rows = tmp_path / "model.onnx", np.random.default_rng(5).standard_normal((2, 64)).astype(np.float16).astype(np.float32)
    used = rows[[0, 1, 1, 0, 1, 0]]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [6, 64]) for name in ("x", "y")]
    nodes = [helper.make_node("Add", ["x", "t"], ["y"])]
    graph = helper.make_graph(nodes, "graph", value[:1], value[1:], [numpy_helper.from_array(used, "t")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(file))
    pack_weights(file, {})
    model = onnx.load(str(file))
    assert sorted(its.name for its in model.functions) == ["codes", "eighths", "grouped", "table", "thin"]
    (stored,) = [its for its in model.graph.initializer if its.data_type == TensorProto.FLOAT16]
    assert list(stored.dims) == [2, 64]
    assert run_file(file)({"x": np.zeros_like(used)}, ["y"])["y"].tobytes() == used.tobytes()


def test_names_and_equal_constants_take_next_to_no_bytes(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    nodes = []
    for place in range(2000):
        constant = helper.make_tensor(f"{place}", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
        nodes.append(helper.make_node("Constant", [], [f"one/{place}"], value=constant, name=f"constant/{place}"))
        before = f"a/very/long/name/{place - 1}" if place else "x"
        nodes.append(helper.make_node("Add", [before, f"one/{place}"], [f"a/very/long/name/{place}"], name=f"add/{place}"))
    nodes.append(helper.make_node("Identity", ["a/very/long/name/1999"], ["a"]))  # which is a short name, too
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "a")]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    shorten(model)
    onnx.save(model, str(file))
    onnx.checker.check_model(str(file), full_check=True)
    assert len(model.graph.initializer) == 1
    assert file.stat().st_size < 25 * 2000
    x = np.zeros(3, np.float32)
    assert np.array_equal(run_file(file)({"x": x}, ["a"])["a"], [2000, 4000, 6000])


@pytest.mark.parametrize("transposed", [False, True])
def test_tables_are_stored_in_8_bits_and_have_their_bits(transposed: bool, tmp_path: Path) -> None:
    values = matrix(40, 24) * np.geomspace(0.01, 1, 40, dtype=np.float32)[:, None]
    values[3] = 0
    table, file = Table.of(values), tmp_path / "model.onnx"
    assert (np.abs(table.matrix() - values) <= 0.51 * table.rows[:, None] + 1e-9).all()
    used = table.matrix().T.copy() if transposed else table.matrix()
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(used.shape)) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "t"], ["y"])], "graph", value[:1], value[1:], [numpy_helper.from_array(used, "t")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(file))
    pack_weights(file, {}, [Table.of(matrix(9, 9)), table])
    stored = {its.data_type: its for its in onnx.load(str(file)).graph.initializer}
    assert set(stored) == {TensorProto.INT8, TensorProto.FLOAT16}
    assert run_file(file)({"x": np.zeros_like(used)}, ["y"])["y"].tobytes() == used.tobytes()


def test_equal_tables_are_in_a_file_once_and_counted_once(tmp_path: Path) -> None:
    table, other, file = Table.of(matrix(40, 24)), Table.of(matrix(9, 24)), tmp_path / "model.onnx"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [40, 24]) for name in ("x", "y")]
    nodes = [helper.make_node("Add", ["x", "t"], ["z"]), helper.make_node("Add", ["z", "u"], ["y"])]
    constants = [numpy_helper.from_array(table.matrix(), name) for name in ("t", "u")]
    nodes += [helper.make_node("Identity", ["o"], ["unused"])]
    graph = helper.make_graph(nodes, "graph", value[:1], value[1:], [*constants, numpy_helper.from_array(other.matrix(), "o")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(file))
    tables = [table, Table.of(matrix(40, 24)), other]
    pack_weights(file, {}, tables)
    made = bytes_of(file, {}, tables)
    assert made["tables"] == 40 * 24 + 9 * 24 + 2 * (40 + 9)
    assert (made["constants"], made["halves"], sum(made.values())) == (0, 0, file.stat().st_size)


def test_weights_that_are_not_in_the_graph_are_an_error(tmp_path: Path) -> None:
    layer = quantise(matrix(16, 32), inputs_like(32))
    graph_file(tmp_path / "model.onnx", -layer.multiplied.T, layer.scales, np.zeros(16, np.float32))
    for name in ("weight", "other"):
        with pytest.raises(ExportError, match=f"model.onnx: the graph has lost the 8-bit weights {name}"):
            pack_weights(tmp_path / "model.onnx", {name: layer})


def test_a_product_in_pytorch_is_of_whole_numbers() -> None:
    statistics = inputs_like(64)
    layer = quantise(matrix(16, 64), statistics)
    rows = statistics.rows[statistics.places == RANGES - 1]
    scale = layer.rounding.scale
    codes = np.clip(np.rint(rows * layer.smooth / scale) + layer.rounding.zero, 0, 255) - layer.rounding.zero
    wanted = codes.astype(np.int64) @ layer.multiplied.T.astype(np.int64) * (np.float32(scale) * layer.scales)
    made = ProductInEight(layer)(torch.from_numpy(rows * layer.smooth)).numpy()
    assert np.allclose(made, wanted, rtol=1e-6)
