"""What a layer's inputs are, and how they are rounded to 8 bits.

Scales are static, one for each range of timesteps, so that a row does not depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nereid_export.w4a8.codes import Floats

SMALLEST = 1e-5
"""Span of inputs, or weight, below which there is nothing to be scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a layer's K inputs were in runs of calibration, over R ranges of timesteps."""

    low: Floats
    """R x K; where a range was never met, that of the nearest that was."""
    high: Floats
    gram: Floats
    """K x K: the sum of outer products of all inputs."""
    rows: NDArray[np.float32]
    """Some of them, S x K."""
    places: NDArray[np.int64]
    """Their ranges, S."""

    @property
    def largest(self) -> Floats:
        """Absolute, of all ranges, K."""
        made: Floats = np.maximum(np.abs(self.low), np.abs(self.high)).max(0)
        return made

    def times(self, factor: Floats) -> Statistics:
        """The same of inputs that are multiplied by this."""
        return Statistics(
            low=self.low * factor,
            high=self.high * factor,
            gram=self.gram * np.outer(factor, factor),
            rows=(self.rows * factor).astype(np.float32),
            places=self.places,
        )


@dataclass(frozen=True, slots=True)
class Rounding:
    """Of inputs to 0..255: x / (gain x scale) + zero, the gain being that of the row's range; the largest gain is 1."""

    scale: np.float32
    zero: int
    gains: NDArray[np.float32]

    @classmethod
    def of(cls, statistics: Statistics) -> Rounding:
        low, high = np.minimum(statistics.low.min(1), 0), np.maximum(statistics.high.max(1), 0)
        span = float(high.max() - low.min())
        if span < SMALLEST:
            return cls(np.float32(1), 0, np.ones(len(low), np.float32))
        zero = round(-255 * float(low.min()) / span)
        steps = np.maximum(high / max(255 - zero, 1), -low / max(zero, 1))
        scale = float(steps.max())
        return cls(np.float32(scale), zero, np.maximum(steps / scale, SMALLEST).astype(np.float32))

    def rounded(self, rows: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
        """What is left of these inputs."""
        steps = (self.scale * self.gains[places])[:, None]
        codes = np.clip(np.rint(rows / steps) + self.zero, 0, 255)
        return np.asarray((codes - self.zero) * steps, np.float32)
