"""Arrays that an interrupted export leaves for the next one: a file is as it was written, or it is not read."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_DIGEST_BYTES = sha256().digest_size


def write_arrays(file: Path, arrays: Mapping[str, NDArray]) -> None:
    """Whole or not at all, with a digest behind: NumPy's own sums cover the values, not what says which they are."""
    held = BytesIO()
    np.savez(held, **arrays)
    data = held.getvalue()
    beside = file.with_suffix(".new")
    beside.write_bytes(data + sha256(data).digest())
    beside.replace(file)


def read_arrays(file: Path) -> dict[str, NDArray] | None:
    """None where there is no such file, or it is not as it was written."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    data, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if sha256(data).digest() != digest:
        return None
    with np.load(BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
