"""AUTOMATIC1111's masks: what is white is drawn anew, softened at its edge; all else is put over the drawn picture as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from nereid.serving.gateway.a1111.bodies import PICTURE, ImageToImageBody
from nereid.serving.gateway.image_models import ImageModel
from nereid.serving.gateway.images import Drawing, drawn_size, from_picture
from nereid.serving.gateway.picture_forms import MASK
from nereid.serving.gateway.pictures import Fit, decoded, fitted, from_base64, on_white

_OPAQUE = 129
"""The smallest alpha of a mask that counts as white, where it has transparent pixels."""

_AS_IT_IS = 1
"""The `inpainting_fill` that leaves the picture alone."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """The picture that another one was drawn from, and how much of it is seen again: where `mask` is black, all.

    `region` is the part of it that was drawn; None: all of it.
    """

    picture: Image.Image
    mask: Image.Image
    region: Box | None = None

    @classmethod
    def of(cls, picture: Image.Image, mask: Image.Image, region: Box | None = None) -> Overlay:
        """What is drawn anew is seen whole: only outside of it the edge is soft."""
        return cls(picture, mask.point([min(255, 2 * value) for value in range(256)]), region)

    def over(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The drawn picture under it: uint8 height x width x 3."""
        drawn = Image.fromarray(pixels)
        if self.region is not None:
            left, top, right, bottom = self.region
            part, drawn = drawn, self.picture.copy()
            drawn.paste(part.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
        return np.asarray(Image.composite(drawn, self.picture, self.mask))


def drawing_of(
    body: ImageToImageBody, options: Mapping[str, Any], model: ImageModel, most_pixels: int
) -> tuple[Drawing, Overlay | None]:
    """What is drawn from the request's picture, and where it has a mask, what is put over it. Raises ApiError."""
    picture = on_white(decoded(from_base64(body.init_images[0], PICTURE), PICTURE, most_pixels))
    if (mask := _mask_of(body, most_pixels)) is not None:
        return _part(body, options, picture, mask, model)
    return from_picture(body.prompt, options, picture, model, "", fit=body.fit), None


def _mask_of(body: ImageToImageBody, most_pixels: int) -> Image.Image | None:
    """The request's mask in greys, inverted and softened as it says; None where it has none. Raises ApiError."""
    if not body.mask:
        return None
    sent = decoded(from_base64(body.mask, MASK), MASK, most_pixels, is_mask=True)
    is_layer = sent.mode == "RGBA"  # a painter's
    mask = sent.getchannel("A").point([0] * _OPAQUE + [255] * (256 - _OPAQUE)) if is_layer else sent.convert("L")
    if body.inpainting_mask_invert:
        mask = ImageOps.invert(mask)
    return mask.filter(ImageFilter.GaussianBlur(body.blur)) if any(body.blur) else mask


def _part(
    body: ImageToImageBody, options: Mapping[str, Any], picture: Image.Image, mask: Image.Image, model: ImageModel
) -> tuple[Drawing, Overlay]:
    """What is drawn where the mask is white, and what is put over it."""
    width, height = size = drawn_size(options, picture, model)
    region = None
    if body.inpaint_full_res:
        mask = fitted(mask, picture.size, Fit.STRETCHED)
        region = _region(mask, body.inpaint_full_res_padding, size)
    if region is None:
        drawing = from_picture(body.prompt, options, picture, model, "", mask=mask, fit=body.fit)
        overlay = Overlay.of(fitted(picture, size, body.fit), fitted(mask, size, body.fit))
    else:  # its part is as large as what is drawn, before there are latents
        part, chosen = picture.crop(region), {**options, "width": width, "height": height, "latent_upscale": None}
        drawing = from_picture(body.prompt, chosen, part, model, "", mask=mask.crop(region), fit=Fit.STRETCHED)
        drawing, overlay = replace(drawing, warnings=()), Overlay.of(picture, mask, region)
    if body.inpainting_fill != _AS_IT_IS:
        filled = _filled(drawing.options["init_image"], drawing.options["mask_image"])
        drawing = replace(drawing, options={**drawing.options, "init_image": filled})
    return drawing, overlay


def _region(mask: Image.Image, padding: int, size: tuple[int, int]) -> Box | None:
    """Where the mask is not black, with padding, and grown to the proportions of what is drawn, as far as the picture goes."""
    found = mask.getbbox()
    if found is None:
        return None
    left, top, right, bottom = (*(max(0, side - padding) for side in found[:2]), *(side + padding for side in found[2:]))
    right, bottom = min(right, mask.width), min(bottom, mask.height)
    width, height = right - left, bottom - top
    left, right = _grown(left, right, round(height * size[0] / size[1]), mask.width)
    top, bottom = _grown(top, bottom, round(width * size[1] / size[0]), mask.height)
    return left, top, right, bottom


def _grown(first: int, last: int, wanted: int, most: int) -> tuple[int, int]:
    """At least as long as `wanted`, on both sides alike where there is room."""
    length = min(max(last - first, wanted), most)
    begin = max(0, min(first - (length - (last - first)) // 2, most - length))
    return begin, begin + length


def _filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """What the mask covers in the colours around it, the farther from its edge the smoother."""
    known = np.asarray(mask.resize(picture.size, Image.Resampling.NEAREST)) == 0
    return Image.fromarray(_spread(np.asarray(picture), known)) if known.any() else picture


def _spread(colours: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Unknown colours from a picture of half the size, in which each is the mean of up to four known ones."""
    if known.all():
        return colours
    height, width = known.shape
    even = ((0, height % 2), (0, width % 2))
    counts = _by_four(np.pad(known, even).astype(np.float32)[..., None])
    sums = _by_four(np.pad(np.where(known[..., None], colours, 0), (*even, (0, 0))).astype(np.float32))
    small = _spread((sums / np.maximum(counts, 1)).round().astype(np.uint8), counts[..., 0] > 0)
    large = Image.fromarray(small).resize((2 * small.shape[1], 2 * small.shape[0]), Image.Resampling.BILINEAR)
    return np.where(known[..., None], colours, np.asarray(large)[:height, :width])


def _by_four(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of squares of two by two."""
    height, width, channels = values.shape
    made: NDArray[np.float32] = values.reshape(height // 2, 2, width // 2, 2, channels).sum((1, 3))
    return made
