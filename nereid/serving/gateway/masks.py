"""Masks as callers send them: a picture that is white where another one is drawn anew, brought to that one's size."""

from __future__ import annotations

from PIL import Image, ImageOps

from nereid.diffusion.inpainting import DRAWN_FROM
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.picture_forms import MASK
from nereid.serving.gateway.pictures import Fit, decoded, fitted


def mask_of_edit(picture: Image.Image, sent: bytes | None, most_pixels: int) -> Image.Image | None:
    """As OpenAI has it: what is transparent is edited, in the mask that was sent, else in the picture; None: the whole picture.

    Raises ApiError.
    """
    if sent is None:
        return _clear_part(picture)
    mask = decoded(sent, MASK, most_pixels, is_mask=True)
    if mask.size != picture.size:
        shown, allowed = (f"{width} x {height}" for width, height in (mask.size, picture.size))
        raise ApiError(400, f"{MASK}: {shown} is not allowed; it must be {allowed}, as image is", param=MASK)
    if (clear := _clear_part(mask)) is None:
        sentence = f"{MASK}: it has no transparent pixels; it must have some, which say what is edited"
        raise ApiError(400, sentence, param=MASK)
    return clear


def _clear_part(picture: Image.Image) -> Image.Image | None:
    if picture.mode != "RGBA":
        return None
    made = ImageOps.invert(picture.getchannel("A"))
    return made if binary(made).getbbox() is not None else None


def binary(mask: Image.Image) -> Image.Image:
    """Greys as the server reads them: all or nothing."""
    return mask.point([0] * DRAWN_FROM + [255] * (256 - DRAWN_FROM))


def fitted_mask(mask: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """The same of the size of a picture that was fitted so."""
    return binary(fitted(mask, size, fit))
