"""Matrices of low rank as products of two thin ones of whole numbers: what rounding has taken from weights, or all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nereid_export.w4a8.codes import Floats, damped

_CUT = tuple(1.0 - 0.05 * step for step in range(14))
"""Shares of a factor's range that are tried."""
_MOST_WORTH = 2**15 - 1


@dataclass(frozen=True, slots=True)
class Factors:
    """A matrix N x K of low rank: the product of factors of `bits` bits, whose components have a worth each, times a scale."""

    left: NDArray[np.int8]
    right: NDArray[np.int8]
    worths: NDArray[np.int16]
    """Of the components, as many as the rank."""
    scale: np.float32
    bits: int

    @property
    def stored_bytes(self) -> int:
        return (self.left.size + self.right.size) * self.bits // 8 + self.worths.nbytes

    def matrix(self) -> NDArray[np.float32]:
        """In the very arithmetic in which an engine unpacks it: whole numbers that float64 holds, scaled at last."""
        product = (self.left.astype(np.float64) * self.worths) @ self.right.astype(np.float64)
        return np.asarray(product * np.float64(self.scale), np.float32)


def factored(matrix: Floats, gram: Floats, bits: int, step: int) -> Iterator[Factors]:
    """Nearer and nearer to a matrix, as a layer's outputs have it whose inputs have this Gram matrix: each of rank `step` more.

    With the symmetric root S of the Gram matrix, ||(E - LR) S|| is least where LR S is the best approximation of E S. What is
    added is that of all that is left, what rounding the components before has taken included: large ones are made good by later
    ones, and need no more bits than others.
    """
    root, inverse = _roots(gram)
    rest = matrix
    parts: list[tuple[NDArray[np.int8], NDArray[np.int8], Floats]] = []
    while True:
        left, sizes, right = np.linalg.svd(rest @ root, full_matrices=False)
        halves = np.sqrt(sizes[:step])[:, None]
        first, ours = _whole(left.T[:step] * halves, bits)
        second, theirs = _whole(right[:step] @ inverse * halves, bits)
        worths = ours * theirs
        rest = rest - (first.T * worths) @ second
        parts.append((first, second, worths))
        yield _together(parts, bits)


def best_error(matrix: Floats, gram: Floats, rank: int) -> float:
    """Of such a layer's outputs, relative, by the best matrix of this rank."""
    values, vectors = np.linalg.eigh(gram)
    sizes = np.linalg.svd(matrix @ (vectors * np.sqrt(np.maximum(values, 0.0))), compute_uv=False)
    return float(np.linalg.norm(sizes[rank:]) / max(float(np.linalg.norm(sizes)), 1e-12))


def _roots(gram: Floats) -> tuple[Floats, Floats]:
    """The symmetric root of a Gram matrix, and its inverse."""
    values, vectors = np.linalg.eigh(damped(gram / (float(np.diag(gram).mean()) or 1.0)))
    roots = np.sqrt(np.maximum(values, 1e-12 * values.max()))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def _together(parts: Sequence[tuple[NDArray[np.int8], NDArray[np.int8], Floats]], bits: int) -> Factors:
    left, right, worths = (np.concatenate(part) for part in zip(*parts, strict=True))
    scale = np.float32(worths.max() / _MOST_WORTH)
    return Factors(left.T.copy(), right, np.rint(worths / scale).clip(0, _MOST_WORTH).astype(np.int16), scale, bits)


def _whole(rows: Floats, bits: int) -> tuple[NDArray[np.int8], Floats]:
    """Of each row whole numbers, and the scale with which they are nearest to it, of those tried."""
    most = 2 ** (bits - 1) - 1
    largest = np.abs(rows).max(1, keepdims=True)
    largest[largest == 0] = 1
    best, made, scales = np.full(len(rows), np.inf), np.zeros(rows.shape), np.ones(len(rows))
    for share in _CUT:
        scale = share * largest / most
        codes = np.clip(np.rint(rows / scale), -most, most)
        error = ((codes * scale - rows) ** 2).sum(1)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale[:, 0], scales)
        made[better] = codes[better]
    return made.astype(np.int8), scales
