"""One linear layer to 4-bit weights and 8-bit inputs: smoothing, bits a channel, rounding, and a low-rank correction.

DiTAS (Dong and Zhang, 2024): inputs are divided, and weights multiplied, by a scale for each input channel, s = max|x|^alpha /
max|w|^(1 - alpha) with the maxima of all steps of calibration, alpha being what leaves the layer the least error of its output;
and what rounding has taken from the weights comes back in part as a product of two thin matrices. MPQ-DM (Feng et al., 2025):
output channels whose weights have the highest kurtosis get one bit more, as many of the lowest one bit less. Inputs have static
scales for each range of timesteps, so that a row does not depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nereid_export.w4a8.codes import Codes, Floats, damped, round_carrying, round_to_nearest

BITS = 4
RANK = 4
"""Of the correction."""
FACTOR_BITS = 4
"""Of its factors' numbers."""
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))
SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4)
"""Of a layer's output channels that get one bit more; as many get one bit less."""
SMALLEST_SCALE = np.float32(1e-12)
"""Of the 8-bit weights of an output channel."""
_SMALLEST = 1e-5
_CUT = tuple(1.0 - 0.05 * step for step in range(14))
"""Shares of a factor's range that are tried."""


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
        if span < _SMALLEST:
            return cls(np.float32(1), 0, np.ones(len(low), np.float32))
        zero = round(-255 * float(low.min()) / span)
        steps = np.maximum(high / max(255 - zero, 1), -low / max(zero, 1))
        scale = float(steps.max())
        return cls(np.float32(scale), zero, np.maximum(steps / scale, _SMALLEST).astype(np.float32))

    def rounded(self, rows: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
        """What is left of these inputs."""
        steps = (self.scale * self.gains[places])[:, None]
        codes = np.clip(np.rint(rows / steps) + self.zero, 0, 255)
        return np.asarray((codes - self.zero) * steps, np.float32)


@dataclass(frozen=True, slots=True)
class Correction:
    """A matrix N x K of low rank: the product of factors of `FACTOR_BITS` bits (exact in float32), times a scale."""

    left: NDArray[np.int8]
    right: NDArray[np.int8]
    scale: np.float32

    def matrix(self) -> NDArray[np.float32]:
        """In the very arithmetic in which an engine unpacks it."""
        return np.asarray((self.left.astype(np.float32) @ self.right.astype(np.float32)) * self.scale, np.float32)


@dataclass(frozen=True)
class QuantisedLayer:
    """Weights N x K of smoothed inputs as they are stored, and how those inputs are rounded."""

    smooth: NDArray[np.float32]
    """What its K inputs are multiplied by before they are rounded; halves hold it."""
    rounding: Rounding
    codes: Codes
    correction: Correction | None
    alpha: float | None
    """None where smoothing does not lessen the error."""
    share: float
    """Of channels with one bit more."""
    error: float
    """Of its output over calibration's inputs, relative; the inputs' rounding included."""
    plain_error: float
    """The same by weights rounded to the nearest of `BITS` bits, with neither smoothing nor correction."""

    @cached_property
    def stored(self) -> NDArray[np.float32]:
        """The weights that storage stands for, N x K."""
        matrix = self.codes.matrix()
        return matrix if self.correction is None else matrix + self.correction.matrix()

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """Of the 8-bit weights, one for each output channel."""
        return np.maximum(np.abs(self.stored).max(1) / np.float32(127), SMALLEST_SCALE).astype(np.float32)

    @cached_property
    def multiplied(self) -> NDArray[np.int8]:
        """The 8-bit weights that an engine unpacks and multiplies, N x K."""
        made: NDArray[np.int8] = np.clip(np.rint(self.stored / self.scales[:, None]), -127, 127).astype(np.int8)
        return made


def quantise(weights: NDArray[np.float32], statistics: Statistics, *, rank: int = RANK) -> QuantisedLayer:
    """A layer's weights (N x K), by what its inputs are."""
    exact = weights.astype(np.float64)
    alpha, smooth = best_alpha(exact, statistics)
    scaled, inputs = exact / smooth, statistics.times(smooth.astype(np.float64))
    bits, share = mixed_bits(scaled, inputs.gram)
    codes = round_carrying(scaled, bits, inputs.gram)
    made = QuantisedLayer(
        smooth=smooth,
        rounding=Rounding.of(inputs),
        codes=codes,
        correction=corrected(scaled - codes.matrix(), inputs.gram, rank) if rank else None,
        alpha=alpha,
        share=share,
        error=0.0,
        plain_error=output_error(exact, statistics),
    )
    object.__setattr__(made, "error", _error(scaled, made.multiplied * made.scales[:, None].astype(np.float64), inputs))
    return made


def best_alpha(weights: Floats, statistics: Statistics) -> tuple[float | None, NDArray[np.float32]]:
    """The exponent with which the layer's output has the least error, and what inputs are then multiplied by; else None, ones."""
    ones = np.ones(weights.shape[1], np.float32)
    best = output_error(weights, statistics)
    found: tuple[float | None, NDArray[np.float32]] = None, ones
    for alpha in ALPHAS:
        factor = smoothing(weights, statistics, alpha)
        wide = factor.astype(np.float64)
        if (error := output_error(weights / wide, statistics.times(wide))) < best:
            best, found = error, (alpha, factor)
    return found


def smoothing(weights: Floats, statistics: Statistics, alpha: float) -> NDArray[np.float32]:
    """One over max|x|^alpha / max|w|^(1 - alpha) of each input channel, of geometric mean 1; rounded to halves."""
    scale = np.maximum(statistics.largest, _SMALLEST) ** alpha / np.maximum(np.abs(weights).max(0), _SMALLEST) ** (1 - alpha)
    relative = np.exp(np.log(scale).mean()) / scale
    return np.clip(relative, 1e-2, 1e2).astype(np.float16).astype(np.float32)


def output_error(weights: Floats, statistics: Statistics) -> float:
    """Relative, of the layer's output where its weights are rounded to the nearest of `BITS` bits and its inputs to 8."""
    bits = np.full(len(weights), BITS)
    return _error(weights, round_to_nearest(weights, bits, np.diag(statistics.gram)).matrix(), statistics)


def _error(weights: Floats, rounded: NDArray, statistics: Statistics) -> float:
    wanted = statistics.rows @ weights.T.astype(np.float32)
    made = Rounding.of(statistics).rounded(statistics.rows, statistics.places) @ rounded.T.astype(np.float32)
    return float(np.linalg.norm(made - wanted) / max(float(np.linalg.norm(wanted)), 1e-12))


def mixed_bits(weights: Floats, gram: Floats, average: int = BITS) -> tuple[NDArray[np.int64], float]:
    """Bits of each output channel, whose mean is `average`, and the share that gets one more.

    Channels go by their kurtosis; how many get more is what leaves the outputs the least error.
    """
    errors = {}
    for count in (average - 1, average, average + 1):
        off = weights - round_to_nearest(weights, np.full(len(weights), count), np.diag(gram)).matrix()
        errors[count] = np.einsum("nk,kl,nl->n", off, gram, off, optimize=True)
    order = np.argsort(kurtosis(weights), kind="stable")
    best, made, chosen = np.inf, np.full(len(weights), average), 0.0
    for share in SHARES:
        count = int(share * len(weights))
        bits = np.full(len(weights), average)
        bits[order[:count]] -= 1
        bits[order[len(order) - count :]] += 1
        total = sum(float(errors[its][bits == its].sum()) for its in errors)
        if total < best:
            best, made, chosen = total, bits, share
    return made, chosen


def kurtosis(weights: Floats) -> Floats:
    """Of each row: the fourth central moment over the square of the second."""
    centred = weights - weights.mean(1, keepdims=True)
    made: Floats = (centred**4).mean(1) / np.maximum((centred**2).mean(1), 1e-24) ** 2
    return made


def corrected(error: Floats, gram: Floats, rank: int) -> Correction:
    """The product of rank `rank` that takes most of this error out of the layer's outputs, in `FACTOR_BITS` bits.

    With the symmetric root S of the Gram matrix, ||(E - LR) S|| is least where LR S is the best approximation of E S.
    """
    values, vectors = np.linalg.eigh(damped(gram / (float(np.diag(gram).mean()) or 1.0)))
    roots = np.sqrt(np.maximum(values, 1e-12 * values.max()))
    left, sizes, right = np.linalg.svd(error @ (vectors * roots) @ vectors.T, full_matrices=False)
    halves = np.sqrt(sizes[:rank])
    thin = right[:rank] @ (vectors / roots) @ vectors.T
    return factored(left[:, :rank] * halves, halves[:, None] * thin)


def factored(left: Floats, right: Floats) -> Correction:
    """A product of these factors."""
    (first, one), (second, other) = _whole(left), _whole(right)
    return Correction(first, second, np.float32(one * other))


def _whole(factor: Floats) -> tuple[NDArray[np.int8], float]:
    """Whole numbers, and the scale with which they are nearest to this, of those tried."""
    most = 2 ** (FACTOR_BITS - 1) - 1
    largest = float(np.abs(factor).max(initial=0.0)) or 1.0
    best, made = np.inf, (np.zeros(factor.shape, np.int8), 1.0)
    for share in _CUT:
        scale = share * largest / most
        codes = np.clip(np.rint(factor / scale), -most, most)
        if (error := float(((codes * scale - factor) ** 2).sum())) < best:
            best, made = error, (codes.astype(np.int8), scale)
    return made
