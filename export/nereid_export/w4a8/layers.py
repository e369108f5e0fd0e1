"""One linear layer to weights of about 4 bits and 8-bit inputs: smoothing, bits a channel, rounding, and a low-rank correction.

DiTAS (Dong and Zhang, 2024): inputs are divided, and weights multiplied, by a scale for each input channel, s = max|x|^alpha /
max|w|^(1 - alpha) with the maxima of all steps of calibration, alpha being what leaves the layer the least error of its output;
and what rounding has taken from the weights comes back in part as a product of two thin matrices. MPQ-DM (Feng et al., 2025):
output channels whose weights have the highest kurtosis get one bit more, as many of the lowest one bit less. How many bits a
layer has in the mean is found by what its rounding costs; where its inputs have few dimensions, the thin matrices do alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nereid_export.w4a8.codes import Codes, Floats, round_carrying, round_to_nearest
from nereid_export.w4a8.factors import Factors, best_error, factored
from nereid_export.w4a8.inputs import SMALLEST, Rounding, Statistics

BITS = 4
FEWEST, MOST = 3, 6
"""Bits of a layer's weights, in the mean of its output channels."""
MEAN_BITS = 3.63
"""Of all layers' weights, before any are stored as factors alone: with scales and all else, a quarter of what halves take."""
RANK = 4
"""Of the correction."""
FACTOR_BITS = 4
"""Of its factors' numbers."""
ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))
SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4)
"""Of a layer's output channels that get one bit more; as many get one bit less."""
SMALLEST_SCALE = np.float32(1e-12)
"""Of the 8-bit weights of an output channel."""
ALONE_BITS = 6
"""Of factors that stand for all of a layer's weights."""
_RANK_STEP = 4
"""Between the ranks that are tried of such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedLayer:
    """Exact weights N x K of smoothed inputs, which are to be rounded."""

    weights: Floats
    inputs: Statistics
    """After smoothing."""
    smooth: NDArray[np.float32]
    """What its K inputs are multiplied by; halves hold it."""
    alpha: float | None
    """None where smoothing does not lessen the error."""
    plain_error: float
    """Of the layer's output by weights that are not smoothed, but rounded to the nearest of `BITS` bits; relative."""

    @classmethod
    def of(cls, weights: NDArray[np.float32], statistics: Statistics) -> SmoothedLayer:
        """A layer's weights (N x K), by what its inputs are."""
        exact = weights.astype(np.float64)
        alpha, smooth = best_alpha(exact, statistics)
        return cls(
            weights=exact / smooth,
            inputs=statistics.times(smooth.astype(np.float64)),
            smooth=smooth,
            alpha=alpha,
            plain_error=output_error(exact, statistics),
        )

    def error(self, stored: NDArray) -> float:
        """Relative, of its output over calibration's inputs, of weights that are stored so."""
        return _error(self.weights, stored, self.inputs)


@dataclass(frozen=True)
class QuantisedLayer:
    """Weights N x K of smoothed inputs as they are stored, and how those inputs are rounded."""

    smooth: NDArray[np.float32]
    """What its K inputs are multiplied by before they are rounded; halves hold it."""
    rounding: Rounding
    codes: Codes | None
    factors: Factors | None
    """Whose product is added to what codes stand for; the weights themselves where there are no codes."""
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
        if self.codes is None:
            assert self.factors is not None
            return self.factors.matrix()
        return self.codes.matrix() if self.factors is None else self.codes.matrix() + self.factors.matrix()

    @property
    def stored_bytes(self) -> int:
        """Of its weights."""
        return sum(part.stored_bytes for part in (self.codes, self.factors) if part is not None)

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """Of the 8-bit weights, one for each output channel."""
        return np.maximum(np.abs(self.stored).max(1) / np.float32(127), SMALLEST_SCALE).astype(np.float32)

    @cached_property
    def multiplied(self) -> NDArray[np.int8]:
        """The 8-bit weights that an engine unpacks and multiplies, N x K."""
        made: NDArray[np.int8] = np.clip(np.rint(self.stored / self.scales[:, None]), -127, 127).astype(np.int8)
        return made


def quantise(weights: NDArray[np.float32], statistics: Statistics, *, rank: int = RANK, bits: int = BITS) -> QuantisedLayer:
    """A layer's weights (N x K), by what its inputs are."""
    layer = SmoothedLayer.of(weights, statistics)
    return in_fewest_bytes(layer, in_codes(layer, rank=rank, bits=bits))


def in_codes(layer: SmoothedLayer, *, rank: int = RANK, bits: int = BITS) -> QuantisedLayer:
    """In codes of so many bits in the mean, and a correction of this rank."""
    each, share = mixed_bits(layer.weights, layer.inputs.gram, bits)
    codes = round_carrying(layer.weights, each, layer.inputs.gram)
    lost = layer.weights - codes.matrix()
    correction = next(factored(lost, layer.inputs.gram, FACTOR_BITS, rank)) if rank else None
    return _made(layer, codes, correction, share)


def in_fewest_bytes(layer: SmoothedLayer, coded: QuantisedLayer) -> QuantisedLayer:
    """In factors alone of the least rank with which the layer's error is no greater than that of codes, where they take less."""
    most = 8 * coded.stored_bytes // (ALONE_BITS * sum(layer.weights.shape))
    if best_error(layer.weights, layer.inputs.gram, most) > coded.error:  # nothing is rounded in that
        return coded
    for factors in factored(layer.weights, layer.inputs.gram, ALONE_BITS, _RANK_STEP):
        if factors.stored_bytes >= coded.stored_bytes:
            break
        made = _made(layer, None, factors, 0.0)
        if made.error <= coded.error:
            return made
    return coded


def _made(layer: SmoothedLayer, codes: Codes | None, factors: Factors | None, share: float) -> QuantisedLayer:
    made = QuantisedLayer(
        smooth=layer.smooth,
        rounding=Rounding.of(layer.inputs),
        codes=codes,
        factors=factors,
        alpha=layer.alpha,
        share=share,
        error=0.0,
        plain_error=layer.plain_error,
    )
    return replace(made, error=layer.error(made.multiplied * made.scales[:, None].astype(np.float64)))


def bits_each(losses: Mapping[str, float], sizes: Mapping[str, int], mean: float) -> dict[str, int]:
    """Bits of the weights of each layer, of `FEWEST` to `MOST`, the mean over all weights being `mean` or less.

    `losses` are what layers cost by the square with `BITS` bits, each more or less being a quarter of that or four times as much;
    `sizes` their numbers of weights. A bit is taken where it costs least for each weight, until the mean is reached.
    """
    made = dict.fromkeys(losses, MOST)
    over = (MOST - mean) * sum(sizes.values())

    def cost(name: str) -> float:
        return losses[name] * 4.0 ** (BITS - made[name]) / sizes[name]

    while over > 0 and (left := [name for name in made if made[name] > FEWEST]):
        name = min(left, key=cost)
        made[name], over = made[name] - 1, over - sizes[name]
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
    scale = np.maximum(statistics.largest, SMALLEST) ** alpha / np.maximum(np.abs(weights).max(0), SMALLEST) ** (1 - alpha)
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
