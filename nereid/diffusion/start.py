"""Where a run starts: noise, an image's noised latents, or the state of an earlier segment; knows the VAE as a callable."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.requests import ImageRequest, ImageRow
from nereid.diffusion.solvers import SolverState
from nereid.diffusion.state import ImageRun
from nereid.flow.noise import Purpose, normal
from nereid.flow.retry import call_again

Array = NDArray[np.float32]

Encode = Callable[[NDArray[np.uint8]], tuple[Array, Array]]
"""The VAE encoder: uint8 H x W x 3 to mean and standard deviation of its scaled latents, float32 C x H x W."""


def start_runs(request: ImageRequest, encode: Encode, given_up: Callable[[], bool]) -> list[ImageRun]:
    """The runs of a request at their first step. Calls the VAE encoder where there is an image, again if it died meanwhile."""
    return [ImageRun(row, _start(row, encode, given_up), row.begin) for row in request.rows]


def _start(row: ImageRow, encode: Encode, given_up: Callable[[], bool]) -> SolverState:
    if row.latents is not None and row.memory is not None:
        return SolverState(row.latents, row.memory)
    noise = row.latents
    if noise is None:
        noise = normal(row.seed, Purpose.INITIAL_LATENTS, row.latent_shape)
    image = row.image
    if image is None:
        return SolverState.start(noise * np.float32(row.table.initial_scale))
    mean, deviation = call_again(lambda: encode(image), given_up)
    latents = mean + deviation * normal(row.seed, Purpose.IMAGE_POSTERIOR, row.latent_shape)
    return SolverState.start(np.float32(row.table.signal) * latents + np.float32(row.table.noise) * noise)
