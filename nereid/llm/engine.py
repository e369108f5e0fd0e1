"""What the scheduler needs of a decoder-only engine; implemented by nereid.engines.onnx_causal and, in tests, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class CausalEngine(Protocol):
    """An engine that owns its KV cache: `tokens` slots of one token each, divided into rows of equal capacity by `arrange`."""

    @property
    def tokens(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    def arrange(self, rows: int, capacity: int, lengths: Sequence[int] = ()) -> None:
        """Divide the memory again, with a scratch row beside; the first `lengths[i]` slots of row i keep their contents."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's first `length` slots over another row's."""

    def read(self, row: int, start: int, end: int) -> NDArray:
        """The KV of slots start to end, a copy; the slots are its last axis but one."""

    def write(self, row: int, start: int, block: NDArray) -> None:
        """Put back what `read` gave."""

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """One token for each of the first rows, in slot `lengths[i]`; logits rows x vocabulary, valid until the next call."""

    def extend(self, row: int, start: int, tokens: Sequence[int], keep: int = 1) -> NDArray[np.float32]:
        """Append tokens to a row that holds `start`; logits of the last `keep` of them. One more slot must be free."""


def longest_row(context_length: int, tokens: int) -> int:
    """Slots of the longest row that is ever needed: no more than the context, and one fits in beside the scratch row."""
    return min(context_length, tokens // 2)
