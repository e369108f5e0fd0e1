"""Whole numbers of a few bits and their scales: choosing them for a matrix, and storing them as planes of bits.

A group of `GROUP` weights of one output channel shares a scale, a whole number of the channel's own small steps, so that it
takes few bits; the steps are whole numbers of one unit. Codes of b bits are -2^(b-1) to 2^(b-1) - 1; the scale's sign is that
with which the group's largest weight gets the lowest code, which uses them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 32
STEP_BITS = 4
"""Of a group's scale, in steps of its channel: how fine scales are matters little, since codes are chosen after them."""
_SHRUNK = np.array([1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65])
"""Shares of a group's range that are tried: cutting its largest weight may serve the others."""
_MOST_STEPS = 2 ** (STEP_BITS - 1) - 1
_MOST_UNITS = 255
_LEAST_UNIT = 1e-12
_DAMPING = 0.01
"""Of the mean of a Gram matrix's diagonal, added to it: calibration has not seen everything."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix N x K: codes int8 N x K', K' being K filled up to whole groups, and scales of N x K' / GROUP groups."""

    codes: NDArray[np.int8]
    steps: NDArray[np.int8]
    """Of each group's scale, of `STEP_BITS` bits."""
    rows: NDArray[np.uint8]
    """What a step is in each of the N output channels, in units."""
    unit: np.float32
    bits: NDArray[np.int64]
    """Of each of the N output channels."""
    inputs: int
    """K."""

    @property
    def code_bytes(self) -> int:
        return int(self.bits.sum()) * self.codes.shape[1] // 8

    @property
    def stored_bytes(self) -> int:
        """Of codes and scales."""
        return self.code_bytes + self.steps.size * STEP_BITS // 8 + self.rows.nbytes + self.unit.nbytes

    @property
    def scales(self) -> NDArray[np.float32]:
        """Of each group, exactly."""
        made: NDArray[np.float32] = self.steps.astype(np.float32) * (self.rows.astype(np.float32) * self.unit)[:, None]
        return made

    def matrix(self) -> NDArray[np.float32]:
        """N x K, in the very arithmetic in which an engine unpacks it."""
        scales = np.repeat(self.scales, GROUP, axis=1)
        return np.ascontiguousarray((self.codes.astype(np.float32) * scales)[:, : self.inputs])


def filled(matrix: NDArray) -> NDArray:
    """With zeros after its columns, up to whole groups."""
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % GROUP)))


def row_steps(weights: Floats, bits: NDArray[np.int64]) -> tuple[NDArray[np.uint8], np.float32]:
    """Of each output channel, and their unit: the largest of its groups' scales takes all of `STEP_BITS` bits."""
    steps = np.abs(weights).max(1) / 2.0 ** (bits - 1) / _MOST_STEPS
    unit = np.float32(max(float(steps.max(initial=0.0)) / _MOST_UNITS, _LEAST_UNIT))
    return np.rint(steps / float(unit)).clip(1, _MOST_UNITS).astype(np.uint8), unit


def group_steps(
    weights: Floats, bits: NDArray[np.int64], importance: Floats, rows: NDArray[np.float32]
) -> tuple[NDArray[np.int8], Floats]:
    """The scale of each row of N x GROUP weights, in steps (of the sizes `rows`), and itself (N x 1).

    Of those tried, that of the least squared error, by importance of columns.
    """
    low = -(2.0 ** (bits - 1))[:, None]
    step = rows.astype(np.float64)[:, None]
    largest = np.take_along_axis(weights, np.abs(weights).argmax(1)[:, None], 1)
    best, steps = np.full(len(weights), np.inf), np.ones((len(weights), 1))
    for share in _SHRUNK:
        tried = np.clip(np.rint(share * largest / low / step), -_MOST_STEPS, _MOST_STEPS)
        tried[tried == 0] = 1
        scales = tried * step
        error = ((weights - nearest(weights, scales, bits) * scales) ** 2 * importance).sum(1)
        better = error < best
        best, steps = np.where(better, error, best), np.where(better[:, None], tried, steps)
    return steps[:, 0].astype(np.int8), steps * step


def nearest(weights: Floats, scales: Floats, bits: NDArray[np.int64]) -> Floats:
    """The code nearest to each weight; `scales` is N x 1, or of the weights' shape."""
    low = -(2.0 ** (bits - 1))[:, None]
    return np.clip(np.rint(weights / scales), low, -low - 1)


def round_to_nearest(weights: Floats, bits: NDArray[np.int64], importance: Floats) -> Codes:
    """Each weight on its own; `importance` is of the K columns."""
    whole, columns, (rows, unit) = filled(weights), filled(importance[None])[0], row_steps(weights, bits)
    made, steps = np.empty(whole.shape, np.int8), np.empty((len(whole), whole.shape[1] // GROUP), np.int8)
    for group in range(steps.shape[1]):
        own = slice(group * GROUP, (group + 1) * GROUP)
        steps[:, group], scale = group_steps(whole[:, own], bits, columns[own], rows * unit)
        made[:, own] = nearest(whole[:, own], scale, bits)
    return Codes(made, steps, rows, unit, bits, weights.shape[1])


def damped(gram: Floats) -> Floats:
    """A Gram matrix (K x K, of a layer's inputs) that can be inverted."""
    mean = float(np.diag(gram).mean()) or 1.0
    return gram + _DAMPING * mean * np.eye(len(gram))


def round_carrying(weights: Floats, bits: NDArray[np.int64], gram: Floats) -> Codes:
    """Column by column, each column's error made up for by those that follow (GPTQ, Frantar et al., 2023).

    `gram` is K x K, of the inputs: what counts is the error of the layer's output.
    """
    left = filled(weights).astype(np.float64)
    own = np.eye(left.shape[1])
    inputs = weights.shape[1]
    own[:inputs, :inputs] = damped(gram)
    factor = np.linalg.cholesky(np.linalg.inv(own)).T
    importance = 1 / np.diag(factor) ** 2
    rows, unit = row_steps(weights, bits)
    made, steps = np.empty(left.shape, np.int8), np.empty((len(left), left.shape[1] // GROUP), np.int8)
    for group in range(steps.shape[1]):
        start, stop = group * GROUP, (group + 1) * GROUP
        steps[:, group], scale = group_steps(left[:, start:stop], bits, importance[start:stop], rows * unit)
        errors = np.empty((len(left), GROUP))
        for column in range(start, stop):
            code = nearest(left[:, column : column + 1], scale, bits)
            made[:, column] = code[:, 0]
            error = (left[:, column] - (code * scale)[:, 0]) / factor[column, column]
            left[:, column:stop] -= error[:, None] * factor[column, column:stop]
            errors[:, column - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return Codes(made, steps, rows, unit, bits, inputs)


# --- storage ---


def planes_of(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Signed codes of so many bits, one after the other, as planes: uint8 bits x count / 8, the lowest bit's first."""
    if bits < 1 or codes.min(initial=0) < -(2 ** (bits - 1)) or codes.max(initial=0) >= 2 ** (bits - 1):
        raise ValueError(f"codes from {codes.min()} to {codes.max()} are not of {bits} bits")
    raised = (codes.reshape(-1).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return np.stack([np.packbits((raised >> bit) & 1) for bit in range(bits)])


def by_bits(bits: NDArray[np.int64]) -> Sequence[tuple[int, NDArray[np.int64]]]:
    """Which output channels have how many bits."""
    return [(int(count), np.flatnonzero(bits == count)) for count in np.unique(bits)]
