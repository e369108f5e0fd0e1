"""Pictures as callers send and get them: decoded within bounds, fitted to a size, encoded; knows no request.

A picture is looked at before it is decoded: its format must be one of a few, and its pixels few enough, so that a small file
cannot become a large memory.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from nereid.serving.gateway.errors import ApiError
from nereid_client.picture_files import in_srgb, upright

FORMATS = ("PNG", "JPEG", "WEBP")
"""What may be sent."""
_WITH_PREVIEWS = ("MPO",)
"""A JPEG with smaller pictures of the same behind it (CIPA DC-007), as phones and cameras write it: the first is meant."""
_WORDS = "a picture in PNG, JPEG or WebP"
WHITE = (255, 255, 255)
PARAMETERS = "parameters"
"""The name of the text that a PNG has of its own making."""
_MOST_TEXT = 2**20
_AS_UNICODE = b"UNICODE\0"
"""What a comment of EXIF begins with (CIPA DC-008, 4.6.6): the rest is UTF-16 then, of AUTOMATIC1111's pictures big-endian."""
_LONGEST_COMMENT = 65_000
"""All of EXIF is one segment of a JPEG, whose length is told in 16 bits."""
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
"""What a part of a JPEG begins with, behind which stands its length (ITU-T T.81, B.1.1); within coded data none does."""
_JPEG_SCAN, _JPEG_ENDS = b"\xda", b"\xd9"
_JPEG_BARE = frozenset(bytes([marker]) for marker in (0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)))
"""Of these markers those behind which Pillow reads no length."""
_PNG_BEGINS, _JPEG_BEGINS = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_MOST_SCANS = 100
"""Of a JPEG; encoders write about ten."""
_MOST_PARTS = 50_000
"""Of a file; a PNG's pixels may be cut into small ones."""
_MOST_BETWEEN = 2**20
"""Bytes of a JPEG before its first scan that are none of its parts'; padding has a few."""
LARGEST_RATIO = 64
"""Of a picture's longer side to its shorter one."""
_LONGEST_SIDES = {"jpeg": 65_500, "webp": 16_383}
"""By format, as libjpeg and libwebp write it."""
_BEFORE_DATA = re.compile(r"data:\s*(?:image/[^;,]*|application/octet-stream|)(?:;[^,]*)?;\s*base64\s*", re.IGNORECASE)
_OF_URLS = str.maketrans("-_", "+/")
"""base64's alphabet for URLs (RFC 4648, 5) in its usual one."""
_BAND = 64
"""Rows that are computed with at once."""


class Fit(StrEnum):
    """How a picture of other proportions becomes one of a given size."""

    STRETCHED = "stretched"
    CUT = "cut"
    PADDED = "padded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How answers' pictures are written; `compression` is the quality, 0 to 100, of what loses some."""

    format: str = "png"
    compression: int | None = None
    lossless: bool = False

    @property
    def longest_side(self) -> int | None:
        """Pixels that a picture of this format may be wide or high; None: its other bounds are reached before."""
        return _LONGEST_SIDES.get(self.format)

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"

    def encoded(self, pixels: Any, *, enlarge: int = 1, text: str = "") -> bytes:
        """uint8 height x width x 3 as a file; `enlarge` times as large, for a preview.

        `text` goes along, in a PNG as a text of its own, else in EXIF's comment, where that can hold it.
        """
        picture = Image.fromarray(pixels)
        if enlarge > 1:
            picture = picture.resize((enlarge * picture.width, enlarge * picture.height), Image.Resampling.BICUBIC)
        options: dict[str, Any] = {}
        if self.format != "png" and self.compression is not None:
            options["quality"] = self.compression
        if self.lossless:
            options["lossless"] = True
        if text and self.format == "png":
            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_itxt(PARAMETERS, text)
        elif text and len(comment := _AS_UNICODE + text.encode("utf-16-be")) < _LONGEST_COMMENT:
            options["exif"] = Image.Exif()
            options["exif"].get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        buffer = io.BytesIO()
        picture.save(buffer, self.format.upper(), **options)
        return buffer.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def from_base64(text: str, field: str) -> bytes:
    """The bytes of a text in base64, or of a data URL (RFC 2397), as clients write them; raises ApiError that names the field.

    The alphabet may be the one for URLs, padding may be missing, and a URL may have its letters in either case, parameters, the
    type of a file that a browser does not know, and escapes.
    """
    head, comma, rest = text.strip().partition(",")
    if comma and not _BEFORE_DATA.fullmatch(head):
        raise _refused(field, f"{head[:40]!r} is not allowed before a comma")
    try:
        sent = "".join((_unescaped(rest) if comma else head).split()).translate(_OF_URLS).rstrip("=")
        return base64.b64decode(sent + "=" * (-len(sent) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _refused(field, f"{text[:40]!r} is not allowed", "its bytes in base64, or a data: URL of it") from None


def _unescaped(text: str) -> str:
    """A URL's escapes read, as fast whatever there is of them: to base64's own reader of quoted-printable, another sign is before
    them. Raises ValueError for what is not ASCII.
    """
    if "%" not in text:
        return text
    return binascii.a2b_qp(text.replace("=", "=3D").replace("%", "=").encode("ascii")).decode("latin-1")


def texts_of(data: bytes, field: str) -> dict[str, str]:
    """The texts that stand before a PNG's pixels, which are not decoded; of another format EXIF's comment.

    Raises ApiError that names the field, also for longer ones than anybody writes: they may be small as long as they are packed.
    """
    _check_parts(data, field)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            found = dict(opened.info) if opened.format == "PNG" else _comment_of(opened)
    except UnidentifiedImageError:
        raise _refused(field, f"its {len(data)} bytes are no picture that can be read") from None
    except Image.DecompressionBombError:
        raise _refused(field, "its size is not allowed") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _refused(field, f"the picture cannot be read ({str(error)[:80]})") from None
    texts = {str(name): str(value) for name, value in found.items() if isinstance(value, str)}
    if sum(map(len, texts.values())) > _MOST_TEXT:
        raise _refused(field, f"texts of more than {_MOST_TEXT} characters are not allowed", "a picture with shorter ones")
    return texts


def _comment_of(picture: Image.Image) -> dict[str, str]:
    try:
        comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        if isinstance(comment, bytes) and comment.startswith(_AS_UNICODE):
            return {PARAMETERS: comment.removeprefix(_AS_UNICODE).decode("utf-16-be")}
    except Exception:  # Pillow's reader ends with errors of many kinds; what cannot be read is as absent
        pass
    return {}


def decoded(data: bytes, field: str, most_pixels: int, *, is_mask: bool = False) -> Image.Image:
    """A picture as RGB, or as RGBA where some of it is transparent, upright (its EXIF orientation is heeded), in the colours of
    sRGB; of a mask the values are what they are.

    Raises ApiError that names the field, for another format, for one of several frames or too many pixels, or what is none.
    """
    if not data:
        raise _refused(field, "an empty file is not allowed")
    _check_parts(data, field)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_size(opened, field, most_pixels)
            opened.load()
            picture = upright(opened)
            return _plain(picture if is_mask else in_srgb(picture))
    except UnidentifiedImageError:
        raise _refused(field, f"its {len(data)} bytes are no picture that can be read") from None
    except Image.DecompressionBombError:
        raise _too_large(field, "its size", most_pixels) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _refused(field, f"the picture cannot be read ({str(error)[:80]})") from None


def _check_size(picture: Image.Image, field: str, most_pixels: int) -> None:
    width, height = picture.size
    if width * height > most_pixels:
        raise _too_large(field, f"{width} x {height}", most_pixels)
    if max(width, height) > LARGEST_RATIO * min(width, height):
        raise _refused(field, f"{width} x {height} is not allowed", f"no more than {LARGEST_RATIO} times as long as it is wide")
    if getattr(picture, "n_frames", 1) > 1 and picture.format not in _WITH_PREVIEWS:
        raise _refused(field, "moving pictures are not allowed", "a picture of one frame")


def _check_parts(data: bytes, field: str) -> None:
    """Before Pillow looks at a file, which takes its time for every part of it, and may keep it."""
    parts = 0
    if data.startswith(_PNG_BEGINS):
        at = len(_PNG_BEGINS)
        while parts <= _MOST_PARTS and at < len(data):
            parts += 1
            at += int.from_bytes(data[at : at + 4]) + 12  # the length of what it holds, its name, and a sum of both
    elif data.startswith(_JPEG_BEGINS):
        parts = _parts_of_jpeg(data, field)
    if parts > _MOST_PARTS:
        raise _refused(field, "a file of so many parts is not allowed", f"one of {_MOST_PARTS} at most")


def _parts_of_jpeg(data: bytes, field: str) -> int:
    """How many there are, no more than one too many; raises ApiError for too many scans, and too much between the parts.

    A scan of a progressive JPEG goes over all of the picture, and may have a few bytes: a body has room for so many that they are
    never done. Before the first one Pillow reads by itself, byte by byte what stands between parts, and beyond an end.
    """
    at = parts = scans = between = 0
    while parts <= _MOST_PARTS and scans <= _MOST_SCANS and between <= _MOST_BETWEEN:
        found = _JPEG_MARKER.search(data, at)
        if not scans:
            between += (len(data) if found is None else found.start()) - min(at, len(data))
        if found is None or (scans and found[1] == _JPEG_ENDS):  # what stands behind the picture is not decoded
            break
        parts += 1
        scans += found[1] == _JPEG_SCAN
        at = found.end() if found[1] in _JPEG_BARE else found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    if scans > _MOST_SCANS:
        raise _refused(field, "a JPEG of so many scans is not allowed", f"one of {_MOST_SCANS} at most")
    if between > _MOST_BETWEEN:
        raise _refused(field, "a JPEG of so much between its parts is not allowed", f"one of {_MOST_BETWEEN} bytes at most")
    return parts


def _plain(picture: Image.Image) -> Image.Image:
    """Colours of 8 bits, and transparency where there is any."""
    if picture.mode.startswith("I") or picture.mode == "F":  # greys of 16 bits
        values = np.asarray(picture)
        greys = np.empty(values.shape, np.uint8)
        for first in range(0, len(values), _BAND):  # as floats all of it would take a multiple of its memory
            band = values[first : first + _BAND].astype(np.float64)
            greys[first : first + _BAND] = (band / 257).clip(0, 255).round()
        made = Image.fromarray(greys).convert("RGB")
        seen = values != picture.info.get("transparency")
        if not seen.all():
            made.putalpha(Image.fromarray(np.uint8(255) * seen))
        return made
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    made = picture.convert("RGBA")
    lowest, _ = made.getchannel("A").getextrema()
    return made if int(lowest) < 255 else made.convert("RGB")  # type: ignore[arg-type]


def on_white(picture: Image.Image) -> Image.Image:
    """Without transparency."""
    if picture.mode != "RGBA":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*WHITE, 255)), picture).convert("RGB")


def fitted(picture: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """The picture in width x height; of other proportions it is stretched, cut evenly on both sides, or padded there."""
    if picture.size == size:
        return picture
    if fit is Fit.CUT:
        return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    if fit is Fit.PADDED:
        return _padded(picture, size)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _padded(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """All of the picture in the middle, and its edges' pixels from there on, as AUTOMATIC1111's "Resize and fill" has it."""
    scale = min(wanted / side for wanted, side in zip(size, picture.size, strict=True))
    width, height = (min(wanted, max(1, round(scale * side))) for wanted, side in zip(size, picture.size, strict=True))
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    beside = ((top, size[1] - height - top), (left, size[0] - width - left))
    return Image.fromarray(np.pad(pixels, (*beside, (0, 0))[: pixels.ndim], mode="edge"))


def _too_large(field: str, size: str, most_pixels: int) -> ApiError:
    return _refused(field, f"{size} is not allowed", f"a picture of {most_pixels} pixels at most")


def _refused(field: str, what: str, allowed: str = _WORDS) -> ApiError:
    return ApiError(400, f"{field}: {what}; it must be {allowed}", param=field)
