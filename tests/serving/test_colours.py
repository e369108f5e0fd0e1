"""Pictures with colour profiles, as phones and editors write them: drawn from in their colours, whatever stands in the profile.

A picture of another space that was taken for sRGB is paler than it is (https://github.com/Comfy-Org/ComfyUI/pull/11241,
https://github.com/AbdullahAlfaraj/Auto-Photoshop-StableDiffusion-Plugin/issues/170).
"""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from nereid.serving.gateway.masks import mask_of_edit
from nereid.serving.gateway.pictures import decoded

from colour_profiles import COLOUR, WIDER, profile


def sent(picture: Image.Image, data: bytes, form: str = "PNG", **options: object) -> Image.Image:
    """As the gateway reads it."""
    buffer = io.BytesIO()
    picture.save(buffer, form, icc_profile=data, **options)
    return decoded(buffer.getvalue(), "image", 10_000)


def near(picture: Image.Image, colour: Any, most: int = 1) -> bool:
    return bool(np.abs(np.asarray(picture).astype(int) - np.array(colour)).max() <= most)


@pytest.mark.parametrize(("form", "most"), [("PNG", 1), ("JPEG", 4), ("WEBP", 8)])
def test_colours_of_a_profile_become_those_of_srgb(form: str, most: int) -> None:
    made = sent(Image.new("RGB", (8, 8), COLOUR), profile(), form)
    assert (made.mode, near(made, WIDER, most)) == ("RGB", True)
    if form != "WEBP":  # which has no greys
        assert near(sent(Image.new("L", (8, 8), 128), profile(b"GRAY", 1.0), form), (188, 188, 188), most)


def test_transparency_stays() -> None:
    assert near(sent(Image.new("RGBA", (8, 8), (*COLOUR, 7)), profile()), (*WIDER, 7))
    assert near(sent(Image.new("LA", (8, 8), (128, 7)), profile(b"GRAY", 1.0)), (188, 188, 188, 7))
    keyed = Image.new("RGB", (8, 8), COLOUR)
    keyed.paste((1, 2, 3), (0, 0, 4, 8))
    made = sent(keyed, profile(), transparency=(1, 2, 3))
    assert made.mode == "RGBA"
    assert (made.getpixel((0, 0))[3], made.getpixel((7, 0))[3]) == (0, 255)  # type: ignore[index]
    paletted = keyed.quantize(4)
    assert near(sent(paletted, profile()).crop((4, 0, 8, 8)), WIDER)


def test_what_is_srgb_already_or_cannot_be_read_is_as_it_was() -> None:
    plain = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8))
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (own, profile(name="sRGB IEC61966-2.1"), b"x", profile()[:200], profile(b"GRAY"), b"\0" * 5000):
        assert np.array_equal(np.asarray(sent(plain, data)), np.asarray(plain))


def test_whatever_stands_in_a_profile_the_picture_is_read() -> None:
    drawn, whole = random.Random(7), profile()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(drawn.choice([1, 4, 40])):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        assert sent(Image.new("RGB", (4, 4), COLOUR), bytes(data)).mode == "RGB"


def test_the_values_of_a_mask_are_what_they_are() -> None:
    mask = Image.new("LA", (8, 8), (128, 255))
    mask.paste((128, 0), (0, 0, 4, 8))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG", icc_profile=profile(b"GRAY", 1.0))
    assert near(
        decoded(buffer.getvalue(), "mask", 10_000, is_mask=True), [[(128, 128, 128, 0)] * 4 + [(128, 128, 128, 255)] * 4] * 8, 0
    )
    assert mask_of_edit(Image.new("RGB", (8, 8)), buffer.getvalue(), 10_000) is not None
