"""Forms: pieces, parts and headers; what clients write, and what is written to keep the gateway busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.forms import MOST_FIELDS, MOST_HEAD, MOST_PARTS, Keep, boundary_of, read_form
from nereid.serving.gateway.image_bodies import EditBody
from nereid.serving.gateway.picture_forms import read_picture_form

from own_time import own_seconds


def read(*heads: bytes) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Fields, and names of files, of a form with these headers, sent in one piece."""
    files: list[tuple[str, str]] = []

    def file_of(name: str, filename: str | None) -> Any:
        if filename is None:
            return None
        files.append((name, filename))
        return lambda piece: None

    async def sent() -> AsyncIterator[bytes]:
        yield b"".join(b"--b\r\n" + head + b"\r\n\r\nx\r\n" for head in heads) + b"--b--"

    return asyncio.run(read_form(sent(), b"b", file_of)), files


@pytest.mark.parametrize(
    ("head", "name", "filename"),
    [
        (b'Content-Disposition: form-data; name="a"', "a", None),
        (b"content-type: text/plain\r\ncontent-disposition:form-data;name=a", "a", None),
        (b'Content-Disposition: form-data; name="a"; filename="x;y=z.png"', "a", "x;y=z.png"),
        (rb'Content-Disposition: form-data; filename="C:\dir\say \"x\".png"; name="a"', "a", r'C:\dir\say "x".png'),
        ('Content-Disposition: form-data; name="ü"; filename="ü.png"'.encode(), "ü", "ü.png"),
        (b"Content-Disposition: form-data; name=\"a\"; filename*=UTF-8''%C3%BC.png", "a", "ü.png"),
        (b'Content-Disposition: form-data; name="a"; filename=""', "a", ""),
    ],
)
def test_parts_have_the_names_that_clients_write(head: bytes, name: str, filename: str | None) -> None:
    fields, files = read(head)
    assert (fields, files) == (([(name, "x")], []) if filename is None else ([], [(name, filename)]))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b=c"', b"a b=c"),
        ("multipart/form-data;BOUNDARY=abc ;x=y", b"abc"),
    ],
)
def test_a_boundary_is_found(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type", ["", "multipart/form-data", "text/plain; boundary=a", 'multipart/form-data; boundary="ü"']
)
def test_what_has_no_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(ApiError, match="multipart/form-data with a boundary"):
        boundary_of(content_type)


@pytest.mark.parametrize(
    "evil", [b';x="' + b";" * 15_000, b";" * 15_000, b';x="' * 3700, b'; x = "\\' * 1800, b'; x="' + b'\\"' * 7400]
)
def test_a_header_is_read_in_a_time_that_grows_as_it_does(evil: bytes) -> None:
    """A form may have a thousand of them, and everybody waits meanwhile."""

    def both() -> None:
        read(b'Content-Disposition: form-data; name="a"' + evil)
        with pytest.raises(ApiError):
            boundary_of("multipart/form-data" + evil.decode())

    assert own_seconds(both) < 0.12


def test_headers_are_bounded_though_they_come_in_one_piece() -> None:
    head = b'Content-Disposition: form-data; name="a"; x='
    assert read(head + b"x" * (MOST_HEAD - len(head) - 2))[0] == [("a", "x")]
    with pytest.raises(ApiError, match=f"headers of a part are larger than {MOST_HEAD} bytes"):
        read(head + b"x" * MOST_HEAD)


@pytest.mark.parametrize("value", [b"[" * 100_000, b"9" * 100_000, b'"\\ud800"', b"NaN"])
def test_a_field_that_nothing_reads_is_refused_by_name_whatever_it_holds(value: bytes) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = head % (b"prompt", b"a cat") + head % (b"background", value) + b"--b--"

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    request = Request({"type": "http", "method": "POST", "headers": headers, "state": {}}, receive)
    with pytest.raises(ApiError) as refused:
        asyncio.run(read_picture_form(request, EditBody, lenient=False))
    assert (refused.value.status, refused.value.param) == (400, "background")
    assert refused.value.response().body


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_form_is_read_in_any_pieces(size: int) -> None:
    content = b"one\r\n--x\r\n--boundar\r\ntwo\r\n"
    head = b'Content-Disposition: form-data; name="%s"'
    sent = (
        b"--boundary\r\n" + head % b"purpose" + b"\r\n\r\nbatch\r\n"
        b"--boundary\r\n" + head % b"empty" + b"\r\n\r\n\r\n"
        b"--boundary\r\n"
        + head % b"file"
        + b'; filename="a b.jsonl"\r\nContent-Type: x/y\r\n\r\n'
        + content
        + b"\r\n--boundary--\r\n"
    )
    kept = bytearray()

    async def pieces(whole: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(whole), size):
            yield whole[start : start + size]

    names: list[str | None] = []

    def file_of(name: str, filename: str | None) -> Keep | None:
        names.append(filename)
        return kept.extend if name == "file" else None

    fields = asyncio.run(read_form(pieces(sent), boundary_of("multipart/form-data; boundary=boundary"), file_of))
    assert bytes(kept) == content
    assert (names, fields) == ([None, None, "a b.jsonl"], [("purpose", "batch"), ("empty", "")])
    with pytest.raises(ApiError, match="ends before its last boundary"):
        asyncio.run(read_form(pieces(sent[:-20]), b"boundary", file_of))
    many = b"--boundary\r\n" + (head % b"x" + b"\r\n\r\n\r\n--boundary\r\n") * (MOST_PARTS + 1)
    with pytest.raises(ApiError, match=f"more than {MOST_PARTS} parts"):
        asyncio.run(read_form(pieces(many), b"boundary", file_of))


def test_fields_are_bounded_together_while_they_come() -> None:
    """They are in memory, and a body that brings a file may be large
    (https://github.com/Kludex/starlette/security/advisories/GHSA-f96h-pmfr-66vw).
    """
    sent = 0

    async def many() -> AsyncIterator[bytes]:
        nonlocal sent
        for number in range(1000):
            sent += 1
            yield b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n' % number + b"x" * 100_000 + b"\r\n"

    with pytest.raises(ApiError, match=f"its fields have more than {MOST_FIELDS} bytes together"):
        asyncio.run(read_form(many(), b"b", lambda name, filename: None))
    assert sent < 20
