"""Masks as clients send them: the left half of a picture is drawn anew, the right half stays.

Needs Pillow, which the environments of those have that send masks.
"""

from __future__ import annotations

import io

from PIL import Image, ImageChops, ImageStat

from told import expect

DRAWN, DRAWN_ANEW = "a red circle on a white background", "a blue square on a black background"
_OTHER, _TIMES = 60, 4
"""How much of 255 the half that is drawn anew differs at least, and how many times less the other one: the VAE reads across."""


def see_through(picture: bytes) -> bytes:
    """The picture as PNG, its left half transparent: OpenAI's way to say what is drawn anew."""
    made = _read(picture)
    made.putalpha(Image.new("L", made.size, 255))
    made.paste((0, 0, 0, 0), (0, 0, made.width // 2, made.height))
    return png(made)


def white(picture: Image.Image) -> Image.Image:
    """White in the left half, black in the right one: AUTOMATIC1111's way."""
    made = Image.new("L", picture.size, 0)
    made.paste(255, (0, 0, picture.width // 2, picture.height))
    return made


def png(picture: Image.Image) -> bytes:
    kept = io.BytesIO()
    picture.save(kept, "PNG")
    return kept.getvalue()


def expect_left_drawn_anew(before: bytes, after: bytes) -> None:
    """Raises FaultError where it is not so; looks at the outer quarters."""
    one, other = _read(before), _read(after)
    expect(one.size == other.size, f"a picture of {one.size} became one of {other.size}")
    quarter = one.width // 4
    left, right = (_difference(one, other, (start, 0, start + quarter, one.height)) for start in (0, one.width - quarter))
    expect(left > _OTHER, f"the left half was not drawn anew: it differs by {left:.1f}")
    expect(right * _TIMES < left, f"the right half did not stay: it differs by {right:.1f}, the left one by {left:.1f}")


def _difference(one: Image.Image, other: Image.Image, box: tuple[int, int, int, int]) -> float:
    found = ImageStat.Stat(ImageChops.difference(one.crop(box), other.crop(box))).mean
    return sum(found) / len(found)


def _read(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture)).convert("RGB")
