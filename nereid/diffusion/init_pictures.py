"""The picture that a run starts from: of which size it is, and how its latents become those of another size; knows no VAE."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader

_CUBIC = -0.75
"""The free number of cubic convolution (Keys, 1981), as torch has it."""


class LatentUpscale(StrEnum):
    """How latents are brought to another size, by the names of torch.nn.functional.interpolate."""

    NEAREST = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


def upscale_of(fields: FieldReader, prompt: int) -> LatentUpscale | None:
    """How a prompt's picture is brought to the size that is drawn; None: it has that size. Raises InvalidRequestError."""
    value = fields.values("latent_upscale", None)[prompt]
    if value is None:
        return None
    if value not in tuple(LatentUpscale):
        raise InvalidRequestError.of("latent_upscale", value, ", ".join(LatentUpscale))
    if not fields.given("init_image"):
        raise InvalidRequestError("latent_upscale: it has no meaning without init_image", "latent_upscale")
    return LatentUpscale(value)


def picture_of(
    fields: FieldReader, prompt: int, size: tuple[int, int], upscale: LatentUpscale | None
) -> NDArray[np.uint8] | None:
    """A prompt's picture, height x width x 3; None without one. Raises InvalidRequestError where it has not the size it must."""
    pictures = fields.array("init_image", np.uint8, 4)
    if pictures is None:
        return None
    picture: NDArray[np.uint8] = pictures[prompt]
    if upscale is None and picture.shape != (*size, 3):
        raise InvalidRequestError.of("shape of init_image", picture.shape, f"{(*size, 3)}, as height and width say")
    if picture.shape[2] != 3:
        raise InvalidRequestError.of("shape of init_image", picture.shape, "height x width x 3")
    return picture


def require_encodable(picture: tuple[int, int], scale: int, most_pixels: int) -> None:
    """Raise InvalidRequestError where a picture of another size (height, width) than is drawn has no latents."""
    height, width = picture
    shown = f"{width} x {height}"
    if not height or not width or height % scale or width % scale:
        raise InvalidRequestError.of("size of init_image", shown, f"multiples of {scale} with latent_upscale")
    if height * width > most_pixels:
        raise InvalidRequestError.of("size of init_image", shown, f"at most {most_pixels} pixels")


def resized(latents: NDArray[np.float32], size: tuple[int, ...], how: LatentUpscale) -> NDArray[np.float32]:
    """Latents (C x h x w) of another size (height, width), as torch's interpolate makes them without antialiasing."""
    height, width = size
    return _along(_along(latents, height, how).swapaxes(1, 2), width, how).swapaxes(1, 2)


def _along(values: NDArray[np.float32], length: int, how: LatentUpscale) -> NDArray[np.float32]:
    """The second axis at another length: each place is a weighted sum of a few old ones, always in the same order."""
    last = values.shape[1] - 1
    centres = (np.arange(length) + 0.5) * (values.shape[1] / length)
    if how is LatentUpscale.NEAREST:
        return values[:, np.minimum(centres.astype(int), last)]
    first = np.floor(centres - 0.5)
    taps = (0, 1) if how is LatentUpscale.BILINEAR else (-1, 0, 1, 2)
    beyond = centres - 0.5 - first
    made = np.zeros((len(values), length, values.shape[2]), np.float32)
    for tap in taps:
        weight = _weight(np.abs(beyond - tap), how).astype(np.float32)
        made += values[:, np.clip(first.astype(int) + tap, 0, last)] * weight[:, None]
    return made


def _weight(distance: NDArray[np.float64], how: LatentUpscale) -> NDArray[np.float64]:
    """What a value counts so far away."""
    if how is LatentUpscale.BILINEAR:
        return 1 - distance
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
    return np.where(distance <= 1, near, far)
