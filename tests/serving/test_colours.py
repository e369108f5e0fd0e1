"""Pictures with colour profiles, as phones and editors write them: drawn from in their colours, whatever stands in the profile.

A picture of another space that was taken for sRGB is paler than it is (https://github.com/Comfy-Org/ComfyUI/pull/11241,
https://github.com/AbdullahAlfaraj/Auto-Photoshop-StableDiffusion-Plugin/issues/170).
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageCms

from nereid.serving.gateway.masks import mask_of_edit
from nereid.serving.gateway.pictures import decoded

COLOUR, WIDER = (200, 80, 60), (218, 67, 47)
"""One of Display P3, and the same of sRGB."""
_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
"""Its primaries, to the white of profiles."""


def profile(space: bytes = b"RGB ", gamma: float = 2.2, name: str = "Display P3") -> bytes:
    """A profile of version 2.4 (ICC.1:2001): a display's, or one of greys."""

    def numbers(values: Sequence[float]) -> bytes:
        return b"".join(struct.pack(">i", round(65536 * value)) for value in values)

    white = numbers((0.9642, 1.0, 0.8249))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))
    text = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79)
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + white, **({b"kTRC": curve} if space == b"GRAY" else {})}
    for letter, primary in zip((b"r", b"g", b"b"), _P3, strict=True) if space == b"RGB " else ():
        tags |= {letter + b"XYZ": b"XYZ " + bytes(4) + numbers(primary), letter + b"TRC": curve}
    table, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    return (head + white).ljust(128, b"\0") + table + body


def sent(picture: Image.Image, data: bytes, form: str = "PNG", **options: object) -> Image.Image:
    """As the gateway reads it."""
    buffer = io.BytesIO()
    picture.save(buffer, form, icc_profile=data, **options)
    return decoded(buffer.getvalue(), "image", 10_000)


def near(picture: Image.Image, colour: Sequence[int], most: int = 1) -> bool:
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
        assert np.array_equal(sent(plain, data), plain)


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
