"""Ranges of timesteps, each with its own rounding of a quantised layout transformer's inputs: runs have as many steps in each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from nereid.diffusion.solvers import noise_levels
from nereid.layout.settings import TRAIN_TIMESTEPS
from nereid_zoo.layout.draw import Flow

Bounds = tuple[float, ...]
"""Between neighbouring ranges, ascending; exact in float32."""


def bounds_of(flow: Flow, numbers_of_steps: Sequence[int], ranges: int) -> Bounds:
    """Of ranges with equal shares of these runs' steps, runs counting alike; of fewer where they visit fewer timesteps.

    A bound is midway between two timesteps that are visited, so that its neighbours fall on their sides however they are rounded.
    """
    shares: dict[float, float] = defaultdict(float)
    for steps in numbers_of_steps:
        for level in noise_levels(steps, flow.shift)[:-1].tolist():
            shares[round(TRAIN_TIMESTEPS * level, 6)] += 1 / (steps * len(numbers_of_steps))
    visited = np.array(sorted(shares))
    below = np.cumsum([shares[timestep] for timestep in visited.tolist()])[:-1]
    middles = ((visited[:-1] + visited[1:]) / 2).astype(np.float32)
    wanted = np.arange(1, ranges) / ranges
    places = {int(np.abs(below - share).argmin()) for share in wanted} if len(below) else set()
    return tuple(float(middles[place]) for place in sorted(places))


def places_of(timestep: Tensor, bounds: Tensor) -> Tensor:
    """The range of each row's timestep."""
    made: Tensor = (timestep[:, None] > bounds).sum(-1)
    return made
