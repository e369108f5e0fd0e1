"""Pictures and forms that are sent to break the gateway, or that other servers took wrong: each is drawn or refused by name."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from drawing_models import Drawers
from picture_calls import BODY, EDIT, GENERATE, png, refused

HEADERS = {"content-type": "multipart/form-data; boundary=b"}


def form(*parts: tuple[str, bytes]) -> bytes:
    """Each part's headers behind the name, and its bytes."""
    made = [f'--b\r\nContent-Disposition: form-data; name="{head}\r\n\r\n'.encode() + data + b"\r\n" for head, data in parts]
    return b"".join(made) + b"--b--\r\n"


@pytest.mark.parametrize(
    ("coding", "data"),
    [("base64", base64.b64encode(png())), ("Quoted-Printable", b"=89PNG"), ("x-own\x00", b"x")],
)
def test_a_part_that_is_written_in_another_way_is_refused_by_name(api: httpx.Client, coding: str, data: bytes) -> None:
    """`curl -F "image=@x.png;encoder=base64"`: servers took the letters of base64 for the file
    (https://github.com/pallets/werkzeug/issues/2120, https://github.com/akka/akka-http/issues/3812).
    """
    head = f'image"; filename="a.png"\r\nContent-Transfer-Encoding: {coding}'
    answer = api.post(EDIT, content=form(('prompt"', b"a box"), (head, data)), headers=HEADERS)
    assert "content-transfer-encoding" in refused(answer, "image")


def test_a_prompt_in_quoted_printable_is_not_drawn_as_it_is_written(api: httpx.Client, drawers: Drawers) -> None:
    """BaseX writes text beyond ASCII so (https://github.com/BaseXdb/basex/issues/1487)."""
    body = form(('prompt"\r\nContent-Transfer-Encoding: base64', b"Yc+JYg=="), ('image"; filename="a.png"', png()))
    assert "'base64' is not allowed" in refused(api.post(EDIT, content=body, headers=HEADERS), "prompt")
    assert drawers.asked == []


@pytest.mark.parametrize("charset", ["", "; charset=UTF-8", '; charset="utf-8"', "; charset=ISO-8859-1"])
def test_a_field_is_read_in_the_charset_that_its_part_says(api: httpx.Client, drawers: Drawers, charset: str) -> None:
    """Apache's client and those on top of it write Latin-1 and say so where they are told nothing else; what says nothing is
    UTF-8 (https://github.com/convertigo/convertigo/issues/517).
    """
    text = "café".encode("latin-1" if "8859" in charset else "utf-8")
    body = form(
        (f'prompt"\r\nContent-Type: text/plain{charset}\r\nContent-Transfer-Encoding: 8bit', text),
        ('image"; filename="a"', png()),
    )
    answer = api.post(EDIT, content=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert drawers.asked[-1]["prompt"] == "café".encode()


def test_a_field_in_a_charset_that_is_not_read_is_refused_by_name(api: httpx.Client) -> None:
    body = form(
        ('prompt"\r\nContent-Type: text/plain; charset=utf-16le', "a box".encode("utf-16le")), ('image"; filename="a"', png())
    )
    assert "charset 'utf-16le' is not allowed" in refused(api.post(EDIT, content=body, headers=HEADERS), "prompt")


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "1e999"])
def test_a_number_of_a_form_is_finite(api: httpx.Client, drawers: Drawers, value: str) -> None:
    """pydantic reads such words as numbers, which no JSON holds (https://github.com/pydantic/pydantic/pull/3994)."""
    for field in ("guidance_scale", "strength"):
        answer = api.post(EDIT, data={**BODY, field: value}, files={"image": png()})
        assert "it must be a finite number" in refused(answer, field)
    assert drawers.asked == []


@pytest.mark.parametrize("body", [{"guidance_scale": 1e39}, {"sigmas": [1e300, 0.0]}, {"strength": 1e308}])
def test_a_number_is_one_that_the_models_can_hold(api: httpx.Client, drawers: Drawers, body: dict[str, Any]) -> None:
    (field,) = body
    route, data = (EDIT, {"images": [{"image_url": f"data:image/png;base64,{base64.b64encode(png()).decode()}"}]})
    answer = api.post(GENERATE if field != "strength" else route, json={**BODY, **body, **({} if field != "strength" else data)})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(field)
    assert drawers.asked == []


@pytest.mark.parametrize(("form", "longest"), [("webp", 16_383), ("jpeg", 65_500)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_its_format_cannot_hold_is_refused_before_it_is_drawn(
    api: httpx.Client, drawers: Drawers, form: str, longest: int, stream: bool
) -> None:
    """It failed once all work was done, as AUTOMATIC1111's grids do
    (https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/11439).
    """
    body = {**BODY, "output_format": form, "stream": stream}
    message = refused(api.post(GENERATE, json={**body, "size": f"8x{longest + 1}"}), "size")
    assert (
        message == f"size: a side of {longest + 1} pixels is not allowed; of {form} no side may have more than {longest} pixels"
    )
    assert drawers.asked == []
    assert api.post(GENERATE, json={**body, "size": "16x8"}).status_code == 200
    assert api.post(GENERATE, json={**BODY, "size": f"8x{longest + 1}"}).status_code == 200


def test_a_number_of_many_digits_is_told_in_a_sentence(api: httpx.Client) -> None:
    message = refused(api.post(GENERATE, json={**BODY, "n": 1e30}), "n")
    assert message == "n: 1e+30 is not allowed; it must be an integer of fewer digits"
