"""Where a run starts: noise, an image's noised latents, or the state of an earlier segment; knows the VAE as a callable."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nereid.diffusion.feature_cache import KeptFeatures
from nereid.diffusion.guidance_cache import KeptDifference
from nereid.diffusion.images import from_pixels
from nereid.diffusion.init_pictures import resized
from nereid.diffusion.inpainting import Source, told, without_part
from nereid.diffusion.requests import ImageRequest, ImageRow
from nereid.diffusion.solvers import SolverState
from nereid.diffusion.state import ImageRun
from nereid.diffusion.vae_tiles import Array, Encode, encode_image
from nereid.flow.errors import CancelledError
from nereid.flow.noise import Purpose, normal
from nereid.flow.retry import call_again


def start_runs(request: ImageRequest, encode: Encode, given_up: Callable[[], bool]) -> list[ImageRun]:
    """The runs of a request at their first step. Calls the VAE encoder where there is an image, again if it died meanwhile."""

    def proceed() -> None:
        if given_up():
            raise CancelledError("the request was given up while its picture was encoded")

    def again(image: Array) -> tuple[Array, Array]:
        # However long the encoder is away: the ticket's own deadline ends it.
        return call_again(lambda: encode(image), given_up, longest=math.inf)

    def moments(image: Array) -> tuple[Array, Array]:
        return encode_image(image, request.tiling, again, proceed)

    return [_run(row, moments) for row in request.rows]


def _run(row: ImageRow, encode: Callable[[Array], tuple[Array, Array]]) -> ImageRun:
    noise = row.latents
    if noise is None or row.memory is not None:  # then they are a sample
        noise = normal(row.seed, Purpose.INITIAL_LATENTS, row.latent_shape)

    def latents_of(picture: Array, purpose: Purpose) -> Array:
        mean, deviation = encode(picture)
        made = mean + deviation * normal(row.seed, purpose, mean.shape)
        return made if row.upscale is None else resized(made, row.latent_shape[-2:], row.upscale)

    image: Array | None = None
    source: Source | None = None
    beside: dict[str, Array] = {}
    if row.image is not None:
        picture = from_pixels(row.image)
        if not row.tells_mask or not (row.from_noise or row.memory is not None):
            image = latents_of(picture, Purpose.IMAGE_POSTERIOR)
            image = image if row.mask is None else row.fill.put(image, row.mask, noise)
        if row.mask is not None and row.tells_mask:
            beside = told(row.mask, latents_of(without_part(picture, row.mask), Purpose.MASKED_IMAGE_POSTERIOR))
        elif row.mask is not None and image is not None:
            source = Source.of(row.mask, image, noise)
    return ImageRun(
        row,
        _start(row, noise, image),
        row.begin,
        kept=None if row.cache is None else KeptFeatures(row.cache),
        reused=None if row.guidance_cache is None else KeptDifference(row.guidance_cache),
        source=source,
        told=beside,
    )


def _start(row: ImageRow, noise: Array, image: Array | None) -> SolverState:
    if row.latents is not None and row.memory is not None:
        return SolverState(row.latents, row.memory)
    if image is None or row.from_noise:
        return SolverState.start(noise * np.float32(row.table.initial_scale))
    return SolverState.start(row.table.mixed(0, image, noise))
