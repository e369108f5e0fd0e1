"""What unpacks stored weights, as ONNX functions: a file has each once, however many layers call it.

ONNX Runtime puts their operators in the calls' places when it loads a file, and folds them, since all that they are given is
constant.
"""

from __future__ import annotations

import onnx
from onnx import FunctionProto, ModelProto, helper

DOMAIN = "w4a8"
_CODES = """
codes (planes, worths, middle, shape) => (codes) {
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    flat = Constant <value_ints = [0, -1]> ()
    shifts = Constant <value = uint8[8] {7, 6, 5, 4, 3, 2, 1, 0}> ()
    lowest = Constant <value = uint8 {1}> ()
    spread = Unsqueeze (planes, last)
    shifted = BitShift <direction = "RIGHT"> (spread, shifts)
    single = BitwiseAnd (shifted, lowest)
    numbers = Cast <to = 1> (single)
    rows = Reshape (numbers, flat)
    count = ReduceProd (shape)
    counted = Slice (rows, zero, count, one)
    raised = MatMul (worths, counted)
    signed = Sub (raised, middle)
    codes = Reshape (signed, shape)
}
"""
"""Signed numbers of this shape, of their planes of bits."""
_GROUPED = """
grouped (codes, steps, worths, middle, shape, rows, unit, inputs) => (matrix) {
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    unpacked = w4a8.codes (steps, worths, middle, shape)
    whole = Cast <to = 1> (rows)
    sizes = Mul (whole, unit)
    scales = Mul (unpacked, sizes)
    scaled = Mul (codes, scales)
    filled = Flatten (scaled)
    matrix = Slice (filled, zero, inputs, one)
}
"""
"""The matrix of codes N x groups x GROUP, with planes of the groups' steps and those of the channels in units."""
_THIN = """
thin (left, left_shape, right, right_shape, worths, middle, components, scale) => (matrix) {
    first = w4a8.codes (left, worths, middle, left_shape)
    second = w4a8.codes (right, worths, middle, right_shape)
    wide = Cast <to = 11> (first)
    sizes = Cast <to = 11> (components)
    weighed = Mul (wide, sizes)
    other = Cast <to = 11> (second)
    product = MatMul (weighed, other)
    factor = Cast <to = 11> (scale)
    scaled = Mul (product, factor)
    matrix = Cast <to = 1> (scaled)
}
"""
"""`Factors.matrix`."""
_EIGHTHS = """
eighths (stored) => (weights, scales) {
    across = Constant <value_ints = [1]> ()
    low = Constant <value = float {-127}> ()
    high = Constant <value = float {127}> ()
    least = Constant <value = float {1e-12}> ()
    sizes = Abs (stored)
    largest = ReduceMax (sizes, across)
    share = Div (largest, high)
    columns = Max (share, least)
    scales = Squeeze (columns, across)
    relative = Div (stored, columns)
    rounded = Round (relative)
    kept = Clip (rounded, low, high)
    whole = Cast <to = 3> (kept)
    weights = Transpose <perm = [1, 0]> (whole)
}
"""
"""`QuantisedLayer.multiplied`, transposed, and `QuantisedLayer.scales`."""
_TABLE = """
table (whole, rows) => (matrix) {
    numbers = Cast <to = 1> (whole)
    scales = Cast <to = 1> (rows)
    matrix = Mul (numbers, scales)
}
"""
"""`Table.matrix`."""


def add_functions(model: ModelProto) -> None:
    """Those that nodes of `DOMAIN` in this model call; further ones that these call."""
    opset = next(its.version for its in model.opset_import if not its.domain)
    imported = f'<domain: "{DOMAIN}", opset_import: ["": {opset}, "{DOMAIN}": 1]>'
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.functions.extend(_function(imported, text) for text in (_CODES, _GROUPED, _THIN, _EIGHTHS, _TABLE))


def _function(imported: str, text: str) -> FunctionProto:
    return onnx.parser.parse_function(imported + text)
