"""The sampler's inner loops, compiled by Numba: one pass over a row's logits finds its likeliest tokens, and one is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

_BLOCK = 64
"""Logits whose maximum is taken at once."""


def _compiled(*signatures: str, **options: Any) -> Callable[[Function], Function]:
    """Compile on import, and keep the machine code on disk where there is a place for it."""

    def compile_it(function: Function) -> Function:
        try:
            return numba.njit(list(signatures) or None, nogil=True, cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache folder may be written
            return numba.njit(list(signatures) or None, nogil=True, **options)(function)

    return compile_it


@_compiled("float32(float32[::1])", fastmath={"nnan", "nsz"})
def _peak(values: NDArray[np.float32]) -> np.float32:
    peak = values[0]
    for value in values:
        peak = max(peak, value)
    return peak


@_compiled("int64(float32[::1], int64, int64[::1], float32[::1])")
def likeliest(logits: NDArray[np.float32], count: int, tokens: NDArray[np.int64], values: NDArray[np.float32]) -> int:
    """Write the `count` largest logits and their tokens, largest first, ties to the smaller token; returns how many.

    There are fewer where the rest is minus infinity. The maxima of blocks bound the `count`-th largest from below, so most
    blocks need no second look.
    """
    vocabulary = len(logits)
    blocks = -(-vocabulary // _BLOCK)
    peaks = np.empty(blocks, np.float32)
    for block in range(blocks):
        peaks[block] = _peak(logits[block * _BLOCK : min((block + 1) * _BLOCK, vocabulary)])
    least = np.float32(-np.inf)
    if count <= blocks:
        least = np.partition(peaks, blocks - count)[blocks - count]
    found = 0
    for block in range(blocks):
        if peaks[block] < least:
            continue
        for token in range(block * _BLOCK, min((block + 1) * _BLOCK, vocabulary)):
            value = logits[token]
            if value < least or value == -np.inf or (found == count and value <= values[found - 1]):
                continue
            place = found if found < count else found - 1
            while place > 0 and values[place - 1] < value:
                if place < count:
                    values[place], tokens[place] = values[place - 1], tokens[place - 1]
                place -= 1
            values[place], tokens[place] = value, token
            found = min(found + 1, count)
    return found


@_compiled("int64(int64[::1], float32[::1], int64, float64[::1], float64, float64)")
def draw(
    tokens: NDArray[np.int64],
    values: NDArray[np.float32],
    found: int,
    numbers: NDArray[np.float64],
    total: float,
    uniform: float,
) -> int:
    """One of the candidates, which are sorted by falling logit.

    `numbers` are 1 / temperature, top-p and min-p; `total` is the weight of all tokens against the likeliest's, or 0 where
    the candidates are all there are. Every filter keeps a leading part of the candidates.
    """
    sharpness, top_p, min_p = numbers
    weights = np.empty(found, np.float64)
    whole = 0.0
    for i in range(found):
        weights[i] = np.exp((np.float64(values[i]) - np.float64(values[0])) * sharpness)
        whole += weights[i]
    limit = top_p * (total if total > 0 else whole)
    kept, mass = 0, 0.0
    while kept < found and (kept == 0 or (mass < limit and weights[kept] >= min_p)):
        mass += weights[kept]
        kept += 1
    target, step = uniform * mass, 0.0
    for i in range(kept):
        step += weights[i]
        if step > target:
            return tokens[i]
    return tokens[kept - 1]


@_compiled("void(float32[:,::1], int64[::1], float64[:,::1], float64[::1], int64[::1])")
def draw_limited(
    logits: NDArray[np.float32],
    top_k: NDArray[np.int64],
    numbers: NDArray[np.float64],
    uniforms: NDArray[np.float64],
    out: NDArray[np.int64],
) -> None:
    """A token for each row that has a top-k; a row without any finite logit gets token 0."""
    most = top_k.max()
    tokens, values = np.zeros(most, np.int64), np.empty(most, np.float32)
    for row in range(len(out)):
        found = likeliest(logits[row], top_k[row], tokens, values)
        out[row] = draw(tokens, values, found, numbers[row], 0.0, uniforms[row]) if found else 0
