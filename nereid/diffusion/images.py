"""Pixels: from the VAE's floats to uint8, previews from latents, PNG for JSON callers; knows nothing of Triton."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nereid.flow.errors import EngineError

LARGEST_COLOUR = 1e4
"""A decoder's colours lie in -1..1 and stray a little; values as large as this come of an overflow, not of a picture."""

_BAND = 64
"""Lines that are converted together."""


def to_pixels(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 N x 3 x H x W in -1..1 to uint8 N x H x W x 3; raises EngineError where the values are no picture's."""
    rows, _, height, width = images.shape
    pixels = np.empty((rows, height, width, 3), np.uint8)
    for row, top in product(range(rows), range(0, height, _BAND)):  # intermediate values are never held of a whole picture
        band = images[row, :, top : top + _BAND]
        if not (np.abs(band) <= LARGEST_COLOUR).all():  # so written, NaN fails too
            raise EngineError(
                f"vae_decoder: the image holds NaN or values beyond {LARGEST_COLOUR:g}; "
                "an fp16 VAE may have overflowed (export it with --precision fp32)"
            )
        scaled = np.clip(band * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255)
        pixels[row, top : top + _BAND] = np.rint(scaled).astype(np.uint8).transpose(1, 2, 0)
    return pixels


def from_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 H x W x 3 to the VAE encoder's input, float32 3 x H x W in -1..1."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1))


def preview(latents: NDArray[np.float32], latents_to_rgb: Sequence[Sequence[float]]) -> NDArray[np.uint8]:
    """A small picture straight from latents (float32 C x h x w): uint8 h x w x 3.

    `latents_to_rgb` is (C + 1) x 3: weights for each channel, then the offset, fitted at export.
    """
    matrix = np.asarray(latents_to_rgb, dtype=np.float32)
    rgb = np.einsum("chw,ck->hwk", latents, matrix[:-1]) + matrix[-1]
    return np.rint(np.clip(rgb * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8)


def png_base64(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 H x W x 3 as the base64 text of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue())
