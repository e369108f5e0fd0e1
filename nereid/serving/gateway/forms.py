"""multipart/form-data (RFC 7578) as it comes: a file's bytes go where they are kept, small fields to memory; knows no route."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.requests import ClientDisconnect, Request

from nereid.serving.gateway.errors import ApiError, caller_gone

MOST_HEAD = 16 * 1024
"""Bytes of a part's headers."""
MOST_FIELD = 128 * 1024
"""Bytes of a part that is no file: a prompt may be one."""
MOST_FIELDS = 2**20
"""Bytes of all such parts together: they are in memory until the form's end."""
MOST_PARTS = 1000
_AS_IT_IS = ("", "7bit", "8bit", "binary")
"""Ways of writing a part's bytes (RFC 2045, 6) that leave them alone; others are deprecated in forms (RFC 7578, 4.7)."""
_CHARSETS = {"utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "utf-8", "iso-8859-1": "latin-1"}
"""Of fields, by the names that parts have for them; Java's clients write the last where they are told nothing."""
Keep = Callable[[bytes], object]
FileOf = Callable[[str, str | None], Keep | None]
"""Where the bytes of the part of this name and file name go; None: it is a field. It may raise ApiError."""
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{1,70}")
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.DOTALL)
"""One of a header, its value with quotes or without; in time that grows as the header does, and no faster."""


def boundary_of(content_type: str) -> bytes:
    """Raises ApiError for what is no form."""
    kind, parameters = _header(content_type)
    found = parameters.get("boundary", "")
    if kind != "multipart/form-data" or not _BOUNDARY.fullmatch(found.encode(errors="replace")):
        raise ApiError(415, "content-type: a file must be sent as multipart/form-data with a boundary")
    return found.encode()


async def read_form(chunks: AsyncIterator[bytes], boundary: bytes, file_of: FileOf) -> list[tuple[str, str]]:
    """Read a whole form: its fields as they come, each a name and a text; raises ApiError where it is none."""
    fields: list[tuple[str, str]] = []
    reader = _Reader(chunks, b"\r\n--" + boundary)
    await reader.until_mark(_nowhere)  # what stands before the first part is nobody's
    parts, held = 0, 0
    while not await reader.is_last():
        if (parts := parts + 1) > MOST_PARTS:
            raise ApiError(400, f"the form is not valid: it has more than {MOST_PARTS} parts")
        part = _Part.of(await reader.head())
        if (keep := file_of(part.name, part.filename)) is not None:
            await reader.until_mark(keep)
        else:
            value = _Small(part.name[:80], part.charset)
            await reader.until_mark(value.take)
            fields.append((part.name, value.text()))
            if (held := held + len(part.name) + len(value.value)) > MOST_FIELDS:
                raise ApiError(400, f"the form is not valid: its fields have more than {MOST_FIELDS} bytes together")
    return fields


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """A request's body as it comes; raises ApiError where its caller has gone."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise caller_gone() from None


def _nowhere(piece: bytes) -> None: ...


@dataclass(slots=True)
class _Small:
    name: str
    charset: str
    value: bytearray = field(default_factory=bytearray)

    def take(self, piece: bytes) -> None:
        self.value += piece
        if len(self.value) > MOST_FIELD:
            raise ApiError(400, f"{self.name}: the field is larger than {MOST_FIELD} bytes", param=self.name)

    def text(self) -> str:
        codec = _CHARSETS.get(self.charset.lower())
        if codec is None:
            sentence = f"{self.name}: charset {self.charset[:80]!r} is not allowed; it must be one of {', '.join(_CHARSETS)}"
            raise ApiError(400, sentence, param=self.name)
        try:
            return self.value.decode(codec)
        except UnicodeDecodeError:
            raise ApiError(400, f"{self.name}: the field is not UTF-8 text", param=self.name) from None


@dataclass(slots=True)
class _Reader:
    """`mark` stands before every part and at the end; the first needs no line break before it."""

    chunks: AsyncIterator[bytes]
    mark: bytes
    ahead: bytes = b"\r\n"

    async def until_mark(self, keep: Keep) -> None:
        """Give what comes before the next mark to `keep`, and pass over the mark."""
        while (at := self.ahead.find(self.mark)) < 0:
            safe = max(0, len(self.ahead) - len(self.mark) + 1)
            keep(self.ahead[:safe])
            self.ahead = self.ahead[safe:] + await self._more()
        keep(self.ahead[:at])
        self.ahead = self.ahead[at + len(self.mark) :]

    async def is_last(self) -> bool:
        """Whether the mark was the form's end."""
        while len(self.ahead) < 2:
            self.ahead += await self._more()
        return self.ahead.startswith(b"--")

    async def head(self) -> bytes:
        """A part's headers."""
        while (at := self.ahead.find(b"\r\n\r\n")) < 0 and len(self.ahead) <= MOST_HEAD:
            self.ahead += await self._more()
        if at < 0 or at > MOST_HEAD:
            raise ApiError(400, f"the form is not valid: headers of a part are larger than {MOST_HEAD} bytes")
        found, self.ahead = self.ahead[:at], self.ahead[at + 2 :]
        # A part without content has its mark right behind the headers: one line break is left for it.
        self.ahead = self.ahead if self.ahead.startswith(self.mark) else self.ahead[2:]
        return found

    async def _more(self) -> bytes:
        async for chunk in self.chunks:
            if chunk:
                return chunk
        raise ApiError(400, "the form is not valid: it ends before its last boundary")


@dataclass(frozen=True, slots=True)
class _Part:
    """What a part's headers say of it."""

    name: str
    filename: str | None
    charset: str

    @classmethod
    def of(cls, head: bytes) -> _Part:
        """Raises ApiError where it has no name, and where its bytes are not those that are meant."""
        headers: dict[bytes, str] = {}
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            headers.setdefault(name.strip().lower(), value.decode(errors="replace").strip())
        _, parameters = _header(headers.get(b"content-disposition", ""))
        if "name" not in parameters:
            raise ApiError(400, "the form is not valid: a part has no name")
        name_of, coding = parameters["name"], headers.get(b"content-transfer-encoding", "binary")
        if coding.lower() not in _AS_IT_IS:
            sentence = f"content-transfer-encoding {coding[:80]!r} is not allowed in a form; it must be binary, or absent"
            raise ApiError(400, f"{name_of[:80]}: {sentence}", param=name_of[:80])
        filename = _extended(parameters.get("filename*", "")) or parameters.get("filename")
        _, kind = _header(headers.get(b"content-type", ""))
        return cls(name_of, None if filename is None else filename[:255], kind.get("charset", "utf-8"))


def _header(value: str) -> tuple[str, dict[str, str]]:
    """What a header says, and its parameters by name; of one that is there twice, the first."""
    kind, semicolon, rest = value.partition(";")
    parameters: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(semicolon + rest):
        parameters.setdefault(name.lower(), re.sub(r'\\(["\\])', r"\1", quoted) or plain.strip())
    return kind.strip().lower(), parameters


def _extended(value: str) -> str:
    """A parameter's text in RFC 8187's form, as some clients write what is not ASCII."""
    charset, _, text = value.partition("'")
    return unquote(text.partition("'")[2], errors="replace") if charset.lower() == "utf-8" else ""
