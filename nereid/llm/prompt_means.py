"""The mean of a prompt's last hidden states, made chunk by chunk while it is read; knows no engine and no text.

No more states are held than those of one chunk. They are added up one after the other, so that the mean is the same bits
however the prompt was cut into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class PromptMean:
    """That of one prompt as far as it is read."""

    taken: int = 0
    """Tokens that are in it."""
    _total: NDArray[np.float64] | None = None

    def take(self, start: int, states: NDArray[np.float32]) -> None:
        """The states of the tokens from place `start` on, one row a token; those that were taken before are passed over.

        A prompt that lost its place in the memory is read again.
        """
        if self._total is None:
            self._total = np.zeros(states.shape[1], np.float64)
        for row in states[max(0, self.taken - start) :]:
            self._total += row
        self.taken = max(self.taken, start + len(states))

    @property
    def value(self) -> NDArray[np.float32]:
        """Of all that was taken, which is at least one token."""
        assert self._total is not None
        return (self._total / self.taken).astype(np.float32)
