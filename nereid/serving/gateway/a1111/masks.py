"""AUTOMATIC1111's masks: what is white is drawn anew, softened at its edge; all else is put over the drawn picture as it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from nereid.serving.gateway.a1111.bodies import ImageToImageBody
from nereid.serving.gateway.picture_forms import MASK
from nereid.serving.gateway.pictures import Fit, decoded, fitted, from_base64

_OPAQUE = 129
"""The smallest alpha of a mask that counts as white, where it has transparent pixels."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """The picture that another one was drawn from, and how much of it is seen again: where `mask` is black, all."""

    picture: Image.Image
    mask: Image.Image

    @classmethod
    def of(cls, picture: Image.Image, mask: Image.Image, fit: Fit) -> Overlay:
        """The part that is drawn anew is seen whole: only outside of it the edge is soft."""
        return cls(picture, fitted(mask, picture.size, fit).point([min(255, 2 * value) for value in range(256)]))

    def over(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The drawn picture under it: uint8 height x width x 3."""
        return np.asarray(Image.composite(Image.fromarray(pixels), self.picture, self.mask))


def mask_of(body: ImageToImageBody, most_pixels: int) -> Image.Image | None:
    """The request's mask in greys, inverted and softened as it says; None where it has none. Raises ApiError."""
    if not body.mask:
        return None
    sent = decoded(from_base64(body.mask, MASK), MASK, most_pixels)
    is_layer = sent.mode == "RGBA"  # a painter's
    mask = sent.getchannel("A").point([0] * _OPAQUE + [255] * (256 - _OPAQUE)) if is_layer else sent.convert("L")
    if body.inpainting_mask_invert:
        mask = ImageOps.invert(mask)
    return mask.filter(ImageFilter.GaussianBlur(body.blur)) if any(body.blur) else mask
