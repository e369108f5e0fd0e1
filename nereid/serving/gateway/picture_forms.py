"""A form with pictures (multipart/form-data): its fields as a body's schema, its files as bytes; knows no route and no model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from nereid.serving.gateway.bodies import made_of
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.forms import Keep, boundary_of, chunks_of, read_form
from nereid.serving.gateway.pictures import from_base64
from nereid.serving.gateway.sent import Sent
from nereid.serving.gateway.unused import unused_field

B = TypeVar("B", bound=Sent)

IMAGE, MASK, MARKUP = "image", "mask", "markup"
_LIST = "[]"
"""What the name of a field ends with that has several values."""
_PICTURE = re.compile(rf"({IMAGE}|{MASK}|{MARKUP})(?:\[[0-9]*\])?")
"""A picture's name; one of several may have its place behind it."""
_URL = b"data:"
"""What a picture begins with that is sent as a text."""


@dataclass(slots=True)
class PictureForm:
    """The bytes of a form's files, by name. A file without bytes is none: browsers send such for what nobody has chosen."""

    files: dict[str, list[bytearray]] = field(default_factory=dict)

    def part(self, name: str, filename: str | None) -> Keep | None:
        """Where the bytes of a part go: those of pictures to memory."""
        found = _PICTURE.fullmatch(name)
        if found is None and filename is None:
            return None
        if found is None:
            raise ApiError(400, f"{name[:80]}: this file is not supported", param=name[:80], code="unsupported_parameter")
        kept = bytearray()
        self.files.setdefault(found[1], []).append(kept)
        return kept.extend

    def found(self, name: str) -> list[bytes]:
        """Raises ApiError for a data: URL that is none."""
        return [_picture(kept, name) for kept in self.files.get(name, ()) if kept]


def _picture(kept: bytearray, name: str) -> bytes:
    return from_base64(kept.decode("latin-1"), name) if kept[:5].lower() == _URL else bytes(kept)


async def read_picture_form(request: Request, schema: type[B], lenient: bool) -> tuple[B, PictureForm]:
    """The fields as `schema`, and the files; raises ApiError that names what is wrong."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise ApiError(415, f"content-encoding: {coding[:80]!r} is not allowed; the body must be sent as it is")
    form = PictureForm()
    boundary = boundary_of(request.headers.get("content-type", ""))
    fields = await read_form(chunks_of(request), boundary, form.part)
    return made_of(_values(fields, schema.place), request, schema, lenient), form


def _values(fields: Sequence[tuple[str, str]], place: str) -> dict[str, Any]:
    """Fields as JSON would have them: empty ones are as absent, those named so, or sent again, are lists."""
    made: dict[str, Any] = {}
    for sent, text in fields:
        name = sent.removesuffix(_LIST)
        if name in made and not isinstance(made[name], list):
            made[name] = [made[name]]
        if name in made:
            made[name].append(text)
        elif text:
            made[name] = [text] if sent.endswith(_LIST) else _plain(place, name, text)
    return made


def _plain(place: str, name: str, text: str) -> Any:
    """A text, or the number or object that a field which nothing reads may be."""
    row = unused_field(place, name)
    if row is None or not row.values or row.allows(text):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def one_picture(form: PictureForm) -> bytes:
    """The form's one picture; raises ApiError where there is none, or what says its place in the picture."""
    picture, mask = picture_and_mask(form)
    if mask is not None:
        sentence = f"{MASK}: a variation is one of the whole picture; leave it out"
        raise ApiError(400, sentence, param=MASK, code="unsupported_parameter")
    return picture


def picture_and_mask(form: PictureForm) -> tuple[bytes, bytes | None]:
    """The form's one picture, and what says which part of it is changed; raises ApiError where there is no picture."""
    pictures: Mapping[str, list[bytes]] = {name: form.found(name) for name in (IMAGE, MASK, MARKUP)}
    if not pictures[IMAGE]:
        raise ApiError(400, f"{IMAGE}: it is missing; it must be a picture", param=IMAGE, code="missing_required_parameter")
    if len(pictures[IMAGE]) > 1:
        raise ApiError(400, f"{IMAGE}: {len(pictures[IMAGE])} pictures are not allowed; it must be one", param=IMAGE)
    if len(pictures[MASK]) > 1:
        raise ApiError(400, f"{MASK}: {len(pictures[MASK])} pictures are not allowed; it must be one", param=MASK)
    if pictures[MARKUP]:
        raise ApiError(400, f"{MARKUP}: this field is not supported", param=MARKUP, code="unsupported_parameter")
    return pictures[IMAGE][0], pictures[MASK][0] if pictures[MASK] else None
