"""Where the bytes of an engine's file go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from nereid_export.w4a8.layers import QuantisedLayer
from nereid_export.w4a8.tables import Table


def bytes_of(file: Path, layers: Mapping[str, QuantisedLayer], tables: Sequence[Table]) -> dict[str, int]:
    """Of a file that `pack_weights` has written, by what they are for; all of it.

    `codes` are those of weights, `scales` their groups' and channels', `factors` those of corrections and of layers without
    codes, `tables` those in 8 bits, `halves` other constants in halves (biases, smoothing), `constants` all other ones, `graph`
    operators, names and functions.
    """
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(str(file)).graph.initializer]
    coded = [layer.codes for layer in layers.values() if layer.codes is not None]
    codes = sum(its.code_bytes for its in coded)
    scales = sum(its.stored_bytes for its in coded) - codes
    factors = sum(layer.factors.stored_bytes for layer in layers.values() if layer.factors is not None)
    whole, rows = _once(its.whole for its in tables), _once(its.rows for its in tables)
    halves = sum(its.nbytes for its in stored if its.dtype == np.float16) - rows
    constants = sum(its.nbytes for its in stored)
    return {
        "codes": codes,
        "scales": scales,
        "factors": factors,
        "tables": whole + rows,
        "halves": halves,
        "constants": constants - codes - scales - factors - whole - rows - halves,
        "graph": file.stat().st_size - constants,
    }


def _once(parts: Iterable[NDArray]) -> int:
    """Bytes of constants of which a file has equal ones once."""
    return sum(map(len, {part.tobytes() for part in parts}))
