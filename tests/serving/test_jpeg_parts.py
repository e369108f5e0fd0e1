"""JPEGs that would keep Pillow busy before anything is decoded: refused before it looks at them, and padding is none of these."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image
from PIL.JpegImagePlugin import MARKER, JpegImageFile

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.pictures import _JPEG_BARE, decoded, texts_of

MEGABYTE = 2**20
COMMENT = b"\xff\xfe\0\2"
HIDDEN = b"\xff\xf0\xff\xff" + 16_383 * COMMENT
"""What looks like one part, and to Pillow are very many: behind this marker it reads no length."""
PARTS = "image: a file of so many parts is not allowed; it must be one of 50000 at most"
BETWEEN = f"image: a JPEG of so much between its parts is not allowed; it must be one of {MEGABYTE} bytes at most"


def with_first(beginning: bytes) -> bytes:
    """A JPEG with this before its own parts."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), (255, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()[:2] + COMMENT + beginning + buffer.getvalue()[2:]


def read(data: bytes) -> Image.Image:
    return decoded(data, "image", 10_000)


@pytest.mark.parametrize("look", [read, lambda data: texts_of(data, "image")], ids=["picture", "texts"])
@pytest.mark.parametrize(
    ("beginning", "sentence"),
    [
        (b"\xff\xd9" + 60_000 * COMMENT, PARTS),
        (60_000 * b"\xff\xd9", PARTS),
        (4 * HIDDEN, PARTS),
        (2 * MEGABYTE * b"\0", BETWEEN),
        (2 * MEGABYTE * b"\xff", BETWEEN),
        (MEGABYTE * b"\xff\xd0", BETWEEN),
        (MEGABYTE * b"\xff\0", BETWEEN),
    ],
    ids=["behind an end", "ends", "hidden", "zeros", "filled", "restarts", "stuffed"],
)
def test_what_pillow_reads_one_by_one_is_bounded_before_it_looks(
    beginning: bytes, sentence: str, look: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JpegImageFile, "_open", lambda self: 1 / 0)
    with pytest.raises(ApiError) as refused:
        look(with_first(beginning))
    assert refused.value.message == sentence


def test_a_file_that_never_comes_to_its_pixels_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JpegImageFile, "_open", lambda self: 1 / 0)
    with pytest.raises(ApiError, match="so much between its parts"):
        read(b"\xff\xd8\xff\xfe\0\2" + 2 * MEGABYTE * b"\xff")


@pytest.mark.parametrize("beginning", [b"\xff" * 5000, b"\0" * 5000, b"\xff\xd0" * 100, COMMENT * 1000])
def test_padding_is_read_over(beginning: bytes) -> None:
    assert read(with_first(beginning)).size == (16, 8)


def test_the_markers_without_a_length_are_those_of_pillow() -> None:
    bare = {marker for marker, (_, _, handler) in MARKER.items() if handler is None}
    restarts = set(range(0xFFD0, 0xFFD8))  # which are between parts
    assert {0xFF00 + found[0] for found in _JPEG_BARE} == bare - restarts
