"""A picture of which a part is drawn anew and the rest stays, as diffusers' inpaint pipelines do it.

With any checkpoint: after each step the sample has, outside the mask, the picture's latents as noisy as the next step takes a
sample, and at the end clean ones; their noise is that which the run has started from. With a checkpoint made for it: its UNet is
told the mask, and the latents of the picture without what the mask covers, and the sample is left alone.

What is drawn anew starts from the picture's own latents; or, as AUTOMATIC1111's web UI has it (`inpainting_fill` of its
modules/processing.py), from the run's starting noise in their place, or from zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.solvers import SolverTable
from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader

TOLD = (MASK, MASKED_IMAGE_LATENTS) = ("mask", "masked_image_latents")
"""Inputs of a UNet made for it, which it takes as further channels of its sample, in this order."""
DRAWN_FROM = 128
"""The smallest value of a mask where the picture is drawn anew (diffusers' binarisation at one half)."""


class Fill(StrEnum):
    """What is in place of what is drawn anew where a run starts from a picture, before the start's noise is added."""

    ORIGINAL = "original"
    LATENT_NOISE = "latent_noise"
    LATENT_NOTHING = "latent_nothing"

    def put(self, latents: NDArray[np.float32], mask: NDArray[np.bool_], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """The picture's latents with it; `mask` is of the picture's size, `noise` what the run starts from."""
        if self is Fill.ORIGINAL:
            return latents
        nothing = np.float32(0)
        return np.where(at_size(mask, latents.shape[-2:]), noise if self is Fill.LATENT_NOISE else nothing, latents)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What stays of a picture: its latents where `drawn` is false, and the noise that goes with them."""

    drawn: NDArray[np.bool_]
    latents: NDArray[np.float32]
    noise: NDArray[np.float32]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], latents: NDArray[np.float32], noise: NDArray[np.float32]) -> Source:
        """`mask` is of the picture's size."""
        return cls(at_size(mask, latents.shape[-2:]), latents, noise)

    def put(self, sample: NDArray[np.float32], table: SolverTable, step: int) -> NDArray[np.float32]:
        """The sample that this step of the table takes, with what stays."""
        return np.where(self.drawn, sample, table.mixed(step, self.latents, self.noise))


def mask_of(fields: FieldReader, prompt: int, size: tuple[int, int], *, needed: bool = False) -> NDArray[np.bool_] | None:
    """Where a prompt's picture of `size` (height, width) is drawn anew; None without a mask. Raises InvalidRequestError."""
    masks = fields.array("mask_image", np.uint8, 3)
    if masks is None:
        if needed:
            sentence = "mask_image: nothing is not allowed; this model draws parts of pictures, and needs it beside init_image"
            raise InvalidRequestError(sentence, "mask_image")
        return None
    if not fields.given("init_image"):
        raise InvalidRequestError("mask_image: it has no meaning without init_image", "mask_image")
    mask = masks[prompt]
    if mask.shape != size:
        raise InvalidRequestError.of("shape of mask_image", mask.shape, f"{size}, as height and width say")
    drawn = mask >= DRAWN_FROM
    if mask.any() and not drawn.any():
        allowed = f"{DRAWN_FROM} to 255 where the picture is drawn anew, or 0 everywhere"
        raise InvalidRequestError.of("largest value of mask_image", int(mask.max()), allowed)
    return drawn


def fill_of(fields: FieldReader, prompt: int) -> Fill:
    """What a prompt's part begins as. Raises InvalidRequestError."""
    value = fields.values("inpainting_fill", Fill.ORIGINAL)[prompt]
    if value not in tuple(Fill):
        raise InvalidRequestError.of("inpainting_fill", value, ", ".join(Fill))
    if value != Fill.ORIGINAL and not fields.given("mask_image"):
        raise InvalidRequestError("inpainting_fill: it has no meaning without mask_image", "inpainting_fill")
    return Fill(value)


def without_part(picture: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The VAE encoder's input without what is drawn anew: grey there."""
    return np.where(at_size(mask, picture.shape[-2:]), np.float32(0), picture)


def told(mask: NDArray[np.bool_], masked_latents: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What a UNet made for it is told, by its inputs' names; `mask` is of the picture's size."""
    return {MASK: at_size(mask, masked_latents.shape[-2:])[None].astype(np.float32), MASKED_IMAGE_LATENTS: masked_latents}


def require_same_noise(fields: FieldReader, *, resumes: bool, ends_early: bool) -> None:
    """Raise InvalidRequestError for a segment of a run whose others could not have its noise, which is the seed's."""
    if resumes and not fields.given("seed"):
        sentence = "seed: nothing is not allowed; a run with mask_image that is resumed at step_begin > 0 needs it"
        raise InvalidRequestError(sentence, "seed")
    if ends_early and not resumes and fields.given("latents"):
        sentence = "latents: they are not allowed with mask_image and step_end; what follows takes the seed's noise"
        raise InvalidRequestError(sentence, "latents")


def what_stays(mask: NDArray[np.bool_], latent_size: tuple[int, ...]) -> list[str]:
    """A warning where a mask changes nothing."""
    if at_size(mask, latent_size).any():
        return []
    height, width = latent_size
    return [f"mask_image: none of its points at the latents' size, {width} x {height}, is {DRAWN_FROM} or more; nothing is drawn"]


def at_size(mask: NDArray[np.bool_], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask at another size (height, width), a latent's is the first of its pixels: as diffusers' nearest neighbour has it."""
    down, across = (np.arange(wanted) * side // wanted for wanted, side in zip(size, mask.shape, strict=True))
    return mask[np.ix_(down, across)]
