"""Tables that are read or multiplied in float32 and stored in 8 bits: whole numbers and a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST = 127


@dataclass(frozen=True, slots=True)
class Table:
    """N x K."""

    whole: NDArray[np.int8]
    rows: NDArray[np.float16]

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Table:
        """The nearest."""
        rows = (np.abs(values).max(1) / _MOST).astype(np.float16)
        rows[rows == 0] = 1  # nothing but zeros, or all but
        whole = np.clip(np.rint(values / rows.astype(np.float32)[:, None]), -_MOST, _MOST)
        return cls(whole.astype(np.int8), rows)

    def matrix(self) -> NDArray[np.float32]:
        """In the very arithmetic in which an engine unpacks it."""
        return np.asarray(self.whole.astype(np.float32) * self.rows.astype(np.float32)[:, None], np.float32)
