"""Counter-based Gaussian noise: a pure function of seed, purpose and step, so that no request's noise depends on another's."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nereid_protocol.field import MAX_SEED


class Purpose(IntEnum):
    """What noise is drawn for; each purpose is its own stream."""

    INITIAL_LATENTS = 0
    SOLVER_STEP = 1
    IMAGE_POSTERIOR = 2
    MASKED_IMAGE_POSTERIOR = 3


def normal(seed: int, purpose: Purpose, shape: tuple[int, ...], *, step: int = 0) -> NDArray[np.float32]:
    """Standard normal numbers from Philox (Salmon et al., 2011), keyed by the seed, with purpose and step as the counter.

    They come in order: what has fewer rows has the first of them, so that padding changes nobody's noise.
    """
    bits = np.random.Philox(key=[seed, 0], counter=[0, 0, step, int(purpose)])
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)


def derived_seed(seed: int, index: int) -> int:
    """The seed of image `index` of a request; image 0 has the request's own (mixing step: SplitMix64, Steele et al., 2014)."""
    if index == 0:
        return seed
    mixed = (seed + index * 0x9E3779B97F4A7C15) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) & MAX_SEED
