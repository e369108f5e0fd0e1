"""Pictures in files as a viewer shows them: upright, in the colours of sRGB, as models were trained with; knows no request."""

from __future__ import annotations

import io

from PIL import ExifTags, Image, ImageCms

_MOST_BYTES = 4 * 2**20
"""Of a profile (ISO 15076-1): those of printers have up to three megabytes."""
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}
"""What a profile's header calls the space of a picture of this mode."""


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation."""


def upright(picture: Image.Image) -> Image.Image:
    """As its EXIF has the camera held. Nothing else of that is read, and what cannot be read is as absent: editors write much
    that is none.
    """
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's reader ends with errors of many kinds
        return picture.copy()
    return picture.copy() if turn is None else picture.transpose(turn)


def in_srgb(picture: Image.Image) -> Image.Image:
    """The same as RGB or RGBA; without a profile, or with one that cannot be read or is of other colours, as it is."""
    data = picture.info.get("icc_profile")
    if not isinstance(data, bytes) or not 0 < len(data) <= _MOST_BYTES:
        return picture
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if "srgb" in (profile.profile.profile_description or "").lower():
            return picture
        clear = picture.has_transparency_data
        if picture.mode in ("P", "PA", "RGB"):  # a clear colour would be another one afterwards
            picture = picture.convert("RGBA" if clear else "RGB")
        elif picture.mode == "L" and clear:
            picture = picture.convert("LA")
        if profile.profile.xcolor_space.strip() != _SPACES.get(picture.mode):
            return picture
        return _converted(picture, profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture


def _converted(picture: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    alpha = picture.getchannel("A") if picture.mode == "LA" else None
    picture = picture.convert("L") if alpha is not None else picture
    mode = picture.mode if picture.mode in ("RGB", "RGBA") else "RGB"
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), picture.mode, mode)
    if mode == picture.mode:
        picture = picture.copy()
        ImageCms.applyTransform(picture, transform, inPlace=True)
        return picture
    made = ImageCms.applyTransform(picture, transform)
    assert made is not None
    if alpha is not None:
        made.putalpha(alpha)
    return made
