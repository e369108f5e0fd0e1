"""The sampler's inner loops, compiled by Numba: one pass over a row's logits finds its likeliest tokens, and one is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

_BLOCK, _SMALL_BLOCK = 64, 16
"""Logits whose maximum is taken at once, in a large vocabulary and in one too small for blocks of that size to bound much."""
_SMALL = 16_384
_NOTHING = np.int32(~0x7F800000)
"""The key of minus infinity."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""SplitMix64's increment."""


def _compiled(*signatures: str, **options: Any) -> Callable[[Function], Function]:
    """Compile on import, and keep the machine code on disk where there is a place for it."""

    def compile_it(function: Function) -> Function:
        try:
            return numba.njit(list(signatures) or None, cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache folder may be written
            return numba.njit(list(signatures) or None, **options)(function)

    return compile_it


@_compiled()
def _mix(state: np.uint64) -> np.uint64:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@_compiled("float64(uint64, uint64)")
def uniform(seed: np.uint64, position: np.uint64) -> float:
    """A number in [0, 1) for each seed and position: SplitMix64 (Steele et al., 2014), seeded by its own first output."""
    state = _mix(seed + _GOLDEN) + (position + np.uint64(1)) * _GOLDEN
    return float((_mix(state) >> np.uint64(11)) * 2.0**-53)


@_compiled()
def _key(bits: np.int32) -> np.int32:
    """A whole number that grows with the float of these bits; comparing them is quicker, for there is no NaN to mind."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


def _peaks(size: int) -> Any:
    """Compile the maxima of blocks for one size: the loop over a block is vectorised where its length is a constant."""

    def peaks_of(bits: NDArray[np.int32], full: int, peaks: NDArray[np.int32]) -> None:
        for block in range(full):
            start = block * size
            peak = _NOTHING
            for place in range(size):
                key = _key(bits[start + place])
                peak = key if key > peak else peak  # max() is compiled to something slower
            peaks[block] = peak

    return _compiled()(peaks_of)


_peaks_of_small, _peaks_of_large = _peaks(_SMALL_BLOCK), _peaks(_BLOCK)


@_compiled("int64(float32[::1], int64, int64[::1], float32[::1])")
def likeliest(logits: NDArray[np.float32], count: int, tokens: NDArray[np.int64], values: NDArray[np.float32]) -> int:
    """Write the `count` largest logits and their tokens, largest first, ties to the smaller token; returns how many.

    There are fewer where the rest is minus infinity. Neither array is left, whatever the logits. The maxima of blocks bound
    the `count`-th largest from below, so most blocks need no second look.
    """
    count = min(count, len(tokens), len(values))
    if count < 1:
        return 0
    bits, chosen = logits.view(np.int32), values.view(np.int32)
    vocabulary = len(bits)
    size = _SMALL_BLOCK if vocabulary < _SMALL else _BLOCK
    full = vocabulary // size
    peaks = np.empty(full + 1, np.int32)
    if size == _SMALL_BLOCK:
        _peaks_of_small(bits, full, peaks)
    else:
        _peaks_of_large(bits, full, peaks)
    peaks[full] = _NOTHING
    for token in range(full * size, vocabulary):
        peaks[full] = max(peaks[full], _key(bits[token]))
    least = _NOTHING
    if count <= full:
        least = np.partition(peaks, full + 1 - count)[full + 1 - count]
    least = max(least, np.int32(_NOTHING + 1))
    found = 0
    for block in range(full + 1):
        if peaks[block] < least:
            continue
        for token in range(block * size, min((block + 1) * size, vocabulary)):
            key = _key(bits[token])
            if key < least or (found == count and key <= chosen[found - 1]):
                continue
            place = found if found < count else found - 1
            while place > 0 and chosen[place - 1] < key:
                chosen[place], tokens[place] = chosen[place - 1], tokens[place - 1]
                place -= 1
            chosen[place], tokens[place] = key, token
            found = min(found + 1, count)
    for place in range(found):
        chosen[place] = _key(chosen[place])  # its own inverse
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
    the candidates are all there are. Every filter keeps a leading part of the candidates. -1 where there is none.
    """
    if found < 1 or found > len(tokens) or found > len(values):
        return -1
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


@_compiled("void(float32[:,::1], int64[::1], float64[:,::1], uint64[:,::1], int64[::1])")
def draw_limited(
    logits: NDArray[np.float32],
    top_k: NDArray[np.int64],
    numbers: NDArray[np.float64],
    draws: NDArray[np.uint64],
    out: NDArray[np.int64],
) -> None:
    """A token for each row that has a top-k; `draws` are seed and position. A row without any finite logit gets -1."""
    most = min(top_k.max(), logits.shape[1])
    tokens, values = np.zeros(most, np.int64), np.empty(most, np.float32)
    for row in range(len(out)):
        found = likeliest(logits[row], top_k[row], tokens, values)
        chance = uniform(draws[row, 0], draws[row, 1])
        out[row] = draw(tokens, values, found, numbers[row], 0.0, chance)
